"""quality.json says what the smoke reports say; the plot of it is whole, readable, and the same everywhere."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.documents.schema import printed, schema_for
from rwkvflow.release.artifacts import Row
from rwkvflow.release.check import check_release
from rwkvflow.release.domain_plot import domain_plot_svg
from rwkvflow.release.labels import Box, Spot, place
from rwkvflow.release.plot import PlotPoint, draw, plot_svg, ticks
from rwkvflow.release.quality import ArtifactFigures, DomainFigures, Quality, quality_bytes, quality_of, read_quality
from tests.helpers.releases import Made, made

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SVG = "{http://www.w3.org/2000/svg}"
NAMES = [f"ggml-{kind}" for kind in ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")]


def measured(name: str, size: int, divergence: float | None, model: str = "m", **more: Any) -> ArtifactFigures:
    plain: dict[str, Any] = {
        "path": f"{model}/{model}-{name}", "model": model, "format": name, "sha256": None, "size": size,
        "weight_bytes": size, "bits_per_weight": 8.0, "perplexity": 3.0, "perplexity_rise": 0.0,
        "kl_divergence": divergence, "kl_divergence_tokens": 512, "top1_agreement": 1.0, "logits": 0.0,
        "consumer": "c", "evaluated": "runtime", "proof": None, "speed": None,
    }  # fmt: skip
    return ArtifactFigures.model_validate(plain | more)


def quality(*artifacts: ArtifactFigures) -> Quality:
    return Quality(release="r", text=None, models={}, artifacts=artifacts)


# ---- the file --------------------------------------------------------------------------------------------------


def test_the_release_holds_the_figures_of_its_smoke_reports(tmp_path: Path) -> None:
    run = made(tmp_path / "store")
    folder = run.publish(tmp_path / "out")
    content = json.loads((folder / "quality.json").read_text())
    assert content["version"] == 1
    assert [item["path"] for item in content["artifacts"]] == [row.path for row in run.assemble().rows]
    for item in content["artifacts"]:
        report = json.loads((folder / item["model"] / "smoke" / f"{Path(item['path']).name}.json").read_text())
        assert item["size"] == (folder / item["path"]).stat().st_size
        assert item["sha256"] + f"  {item['path']}" in (folder / "SHA256SUMS").read_text()
        for mine, theirs in (("kl_divergence",) * 2, ("top1_agreement", "agreement"), ("bits_per_weight",) * 2):
            assert item[mine] == report[theirs]
    assert content["models"]["tiny4"] == {
        "perplexity": 12.5, "text_tokens": 512, "tokenizer": "bytes", "weights": 100_000
    }  # fmt: skip
    assert any("quality.json: 4 artifacts" in line for line in check_release(folder).checked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["artifacts"][0].update(perplexity=1.0), "has another perplexity than"),
        (lambda c: c["artifacts"][1].update(path="tiny7/other"), "the release has no tiny7/other"),
        (lambda c: c["artifacts"][0].update(sha256="0" * 64), "is another file than the one that was measured"),
        (lambda c: c["artifacts"][0].update(kl_divergence="low"), "artifacts.0.kl_divergence: Input should be"),
        (lambda c: c.update(version=2), "version: Input should be 1"),
        (lambda c: c.update(more=1), "more: Extra inputs"),
    ],
)
def test_figures_that_were_changed_are_found(tmp_path: Path, change: Any, said: str) -> None:
    folder = made(tmp_path / "store").publish(tmp_path / "out")
    content = json.loads((folder / "quality.json").read_text())
    change(content)
    (folder / "quality.json").write_text(json.dumps(content))
    assert any(said in problem for problem in check_release(folder).problems)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b'{"version": 1}', b"[" * 100_000])
def test_what_is_no_such_file_is_refused_on_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        read_quality(data)


def test_a_folder_and_figures_that_are_missing() -> None:
    smoke = {"tokens_per_second": 12, "speed": {"tokens": 5, "threads": None, "cpu": "x"}, "evaluated": "runtime"}
    row = Row("m", "onnx-f16", "m/m-ONNX", "sha256:1", 5, (), smoke, {}, ("m/m-ONNX/model.onnx", "m/m-ONNX/data"))
    made_of = quality_of("r", [row], "mine.txt")
    (item,) = made_of.artifacts
    assert (item.sha256, item.kl_divergence, item.perplexity, item.speed and item.speed.threads) == (None,) * 4
    assert item.speed is not None
    assert item.speed.tokens_per_second == 12
    assert read_quality(quality_bytes(made_of)) == made_of
    assert quality_bytes(read_quality(quality_bytes(made_of))) == quality_bytes(made_of)


# ---- the plot --------------------------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own


def test_the_plot_needs_two_artifacts_with_a_divergence() -> None:
    assert plot_svg(quality(measured("a", 10, 0.1), measured("b", 10, None))) is None
    svg = plot_svg(quality(measured("a<&>", 10, 0.1), measured("b" * 50, 20, 0.0)))
    assert svg is not None
    assert {"a<&>", "b" * 50, "0", "size, B", "KL divergence from fp32, nats a token"} <= set(texts(svg))


def test_every_format_of_several_models_has_its_name_and_every_model_its_series() -> None:
    items = [
        measured(name, int(size * 10 ** (7 + index)), size / 10 ** (4 + at), f"model{index}")
        for index in range(3)
        for at, (name, size) in enumerate(zip(NAMES, (32, 16, 8.5, 6, 5.5, 5, 4.5), strict=True))
    ]
    svg = plot_svg(quality(*items))
    assert svg is not None
    said = texts(svg)
    assert sum(name in line.replace(",", "").split() for line in said for name in NAMES) == len(items)
    assert [line for line in said if line.startswith("model")] == ["model0", "model1", "model2"]
    assert "size, GB" in said
    root = ET.fromstring(svg)  # noqa: S314 - our own
    drawn = [shape.tag.removeprefix(SVG) for group in root.iter(f"{SVG}g") for shape in group][1::2]
    assert drawn == ["circle"] * 7 + ["rect"] * 7 + ["path"] * 7
    assert plot_svg(quality(*items)) == svg


def test_points_that_coincide_share_a_label_and_hollow_ones_are_explained() -> None:
    more = [measured(name, 1000, 0.0, evaluated="tensors") for name in ("x-f16", "y-f16")]
    svg = plot_svg(quality(measured("z", 500, 0.01), *more))
    assert svg is not None
    assert "x-f16, y-f16" in texts(svg)
    assert svg.count(' o"') == 2
    assert any(line.startswith("Hollow:") for line in texts(svg))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(1, 10**12), st.sampled_from("abc"), st.text("xyz-", max_size=30)),
        min_size=2,
        max_size=30,
    )
)
def test_the_plot_stays_inside_its_frame(figures: list[tuple[float, int, str, str]]) -> None:
    svg = plot_svg(quality(*(measured(name, size, cost, model) for cost, size, model, name in figures)))
    assert svg is not None
    inside(svg, 900)


def inside(svg: str, wide: int) -> None:
    """Asserts that nothing of a picture is beyond its edges, of text the end included, about."""
    root = ET.fromstring(svg)  # noqa: S314 - our own
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert width == wide
    for element in root.iter():
        for name, most in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
            if name in element.attrib:
                assert 0 <= float(element.attrib[name]) <= most
        if element.tag == f"{SVG}text" and "transform" not in element.attrib:
            long, at = 5.5 * len(element.text or ""), float(element.attrib["x"])
            end = {"end": at, "middle": at + long / 2}.get(element.get("text-anchor", ""), at + long)
            assert end <= width, element.text


POINTS = st.builds(
    PlotPoint,
    st.text("xyz-", max_size=90),
    st.just("title"),
    st.integers(1, 10**12),
    st.floats(-100, 1000),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)


@settings(deadline=None, max_examples=25)
@given(st.lists(POINTS, min_size=2, max_size=20), st.sampled_from([400, 900]), st.sampled_from(["", "heading"]))
def test_a_plot_of_any_width_stays_inside_its_frame(points: list[PlotPoint], width: int, heading: str) -> None:
    svg = draw(points, ["m", "n" * 200, "o"], "words", "a <title>", heading=heading, width=width)
    assert svg is not None
    inside(svg, width)
    assert len(re.findall("<title>title</title>", svg)) == len(points)
    assert svg.count('class="x"') == sum(point.failed for point in points)
    assert ("A cross" in svg) == any(point.failed for point in points)


def test_names_that_are_too_long_keep_both_ends() -> None:
    points = [PlotPoint(f"{at}" + "x" * 90 + f"{at}", "", 10**at, 0.1 * at) for at in (1, 2, 3)]
    svg = draw(points, ["m"], "words", "title", width=400)
    assert svg is not None
    for at in (1, 2, 3):
        assert any(re.fullmatch(f"{at}x+…x+{at}", text) for text in texts(svg))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(Spot, st.text("abc-", min_size=1, max_size=12), st.integers(20, 780), st.integers(20, 580)),
        min_size=1,
        max_size=25,
    )
)
def test_labels_touch_neither_each_other_nor_points_nor_the_edge(spots: list[Spot]) -> None:
    frame = Box(0, 0, 800, 600)
    markers = [Box(spot.x - 6, spot.y - 6, spot.x + 6, spot.y + 6) for spot in spots]
    labels, homeless = place(spots, frame, markers)
    assert len(labels) + homeless <= len(spots)
    for index, label in enumerate(labels):
        assert 0 <= label.box.left < label.box.right <= 800
        assert 0 <= label.box.top < label.box.bottom <= 600
        assert not any(label.box.meets(box) for box in markers)
        assert not any(label.box.meets(other.box) for other in labels[:index])


@given(st.floats(-9, 12), st.floats(0.05, 9))
def test_ticks_are_round_few_and_within(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) <= 12
    assert found == sorted(set(found))
    assert all(10**low * (1 - 1e-9) <= value <= 10 ** (low + span) * (1 + 1e-9) for value in found)
    assert len(found) >= 1 or span < 0.1


# ---- by domain -------------------------------------------------------------------------------------------------

DOMAIN = {
    "tokens": 8192,
    "perplexity": 12.5,
    "perplexity_se": 0.2,
    "reference_perplexity": 12.4,
    "rise": 0.008,
    "rise_se": None,
    "kl": 0.0123,
    "kl_se": 0.0004,
    "kl_p99": 0.2,
    "kl_max": 1.5,
    "agreement": 0.95,
    "agreement_se": 0.002,
}
SHARE = {"items": 64, "right": 0.75, "se": 0.05, "reference": 0.7}
REPORT = {
    "domains": {"code": DOMAIN},
    "tasks": {"last_words": SHARE, "last_words_exact": SHARE, "sums": SHARE},
    "layers": [0.01, 0.002],
    "passed": True,
}


def measured_run(tmp_path: Path) -> Made:
    run = made(tmp_path / "store")
    entry = run.params["entries"][0]
    entry["measured"] = True
    report = tmp_path / "quality.json"
    report.write_text(json.dumps(REPORT), encoding="utf-8")
    run.add(f"quality/{entry['id']}", report)
    return run


def test_figures_by_domain_are_in_the_file_and_on_the_card_and_are_checked(tmp_path: Path) -> None:
    run = measured_run(tmp_path)
    folder = run.publish(tmp_path / "out")
    content = json.loads((folder / "quality.json").read_text())
    schema = json.loads((GOLDEN / "schema-quality.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content)
    assert printed(schema_for("quality", Quality)) == (GOLDEN / "schema-quality.json").read_text()
    first, *others = content["artifacts"]
    assert first["domains"] == {"code": DOMAIN}
    assert first["layers"] == [0.01, 0.002]
    assert all(item["domains"] is item["tasks"] is item["layers"] is None for item in others)
    broken = json.loads(json.dumps(content))
    broken["artifacts"][0]["domains"]["code"]["kl"] = "low"
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(broken))
    card = (folder / "README.md").read_text()
    path = first["path"].replace("_", "\\_")
    table = f"KL divergence, in nats a token:\n\n| file | code |\n| --- | ---: |\n| {path} | 0.0123 ± 0.0004 |\n"
    assert table in card, "one row a file, one column a domain"
    assert "75.0 % ± 5.00 % (fp32: 70.0 %)" in card
    assert card.count("75.0 % ± 5.00 % (fp32: 70.0 %)") == 3
    assert "| 0: 0.01 |" in card, "the layer that costs most"
    assert not (folder / "quality-domains.svg").exists(), "one file alone makes no plot"
    assert "By domain" not in (made(tmp_path / "other").publish(tmp_path / "plain") / "README.md").read_text()
    assert not check_release(folder).problems
    content["artifacts"][0]["domains"]["code"]["kl"] = 0.001
    (folder / "quality.json").write_text(json.dumps(content))
    assert any("has other domains than tiny7/quality/" in problem for problem in check_release(folder).problems)


def by_domain(name: str, size: int, losses: dict[str, float], model: str = "m") -> ArtifactFigures:
    told = {domain: DomainFigures.model_validate({**DOMAIN, "kl": loss}) for domain, loss in losses.items()}
    return measured(name, size, 0.1, model).model_copy(update={"domains": told})


def test_the_plot_by_domain_has_a_line_a_domain_and_a_panel_a_model() -> None:
    assert domain_plot_svg(quality(measured("a", 10, 0.1), measured("b", 20, 0.2))) is None
    losses = {"prose": 0.01, "code <&>": 0.0}
    assert domain_plot_svg(quality(by_domain("a", 10, losses))) is None
    items = [by_domain(f"gguf-{x}", 1000 * 2**i, {k: v / 2**i for k, v in losses.items()}) for i, x in enumerate("abc")]
    svg = domain_plot_svg(quality(*items))
    assert svg is not None
    assert {"prose", "code <&>", "gguf-a", "gguf-b", "gguf-c", "0", "size, kB"} <= set(texts(svg))
    root = ET.fromstring(svg)  # noqa: S314 - our own
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [3, 3]
    down = [float(point.partition(",")[2]) for point in lines[0]]
    assert down == sorted(down), "what loses less stands lower"
    assert len([title for title in root.iter(f"{SVG}title") if "nats" in (title.text or "")]) == 6
    assert domain_plot_svg(quality(*items)) == svg
    two = domain_plot_svg(quality(*items, *(by_domain(i.format, i.size, losses, "other") for i in items)))
    assert two is not None
    assert len(list(ET.fromstring(two).iter(f"{SVG}polyline"))) == 4  # noqa: S314 - our own
    assert {"m", "other"} <= set(texts(two))


def test_rules_of_a_plot_within_a_page_are_for_it_alone() -> None:
    items = [by_domain("a", 10, {"prose": 0.1}), by_domain("b", 20, {"prose": 0.01})]
    svg = domain_plot_svg(quality(*items), "#here ")
    assert svg is not None
    (rules,) = re.findall("<style>(.*)</style>", svg)
    flat = re.sub(r"@media\([^)]*\)\{(.*?)\}\}", r"\1}", rules)
    selectors = [one for part in re.findall(r"([^{}]+)\{", flat) for one in part.split(",")]
    assert len(selectors) > 20
    assert all(one.startswith("#here ") for one in selectors), selectors


def test_an_artifact_over_its_limits_is_left_out(tmp_path: Path) -> None:
    run = made(tmp_path / "store")
    entry = run.params["entries"][0]
    entry["measured"] = True
    left_out = run.assemble().left_out
    assert left_out == {entry["id"]: "its quality was not measured, or is over the recipe's limits"}


def test_the_file_of_an_older_release_is_read() -> None:
    older = json.loads(quality_bytes(quality(measured("a", 10, 0.1))))
    for key in ("domains", "tasks", "layers"):
        del older["artifacts"][0][key]
    assert read_quality(json.dumps(older).encode()).artifacts[0].domains is None
