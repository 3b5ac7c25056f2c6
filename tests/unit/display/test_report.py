"""Reports: complete, self-contained, and nothing that a run contains gets to be markup."""

from __future__ import annotations

import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.text import shown
from rwkvflow.cli import cli
from rwkvflow.display.report import diff_kind, figure, report_html, size_text
from rwkvflow.display.report_data import ArtifactRow, RunData, gather
from rwkvflow.release.plot import PlotPoint, draw
from tests.helpers.runs import Past

VOID = {"meta", "br", "line", "circle", "path", "rect"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return "".join(self.said)


def report(past: Past) -> str:
    return report_html(gather(past.path, past.store, past.folder))


def test_tells_everything(tmp_path: Path) -> None:
    text = report(Past(tmp_path))
    page = Page(text)
    for expected in (
        "demo",
        "failed",
        "engine/librwkv@py3.11",
        "12.5 s",
        "[1/2] a plain text",
        "+0.40 %",
        "3.012",
        "0.000500",
        "99.6 %",
    ):
        assert expected in page.text
    assert page.text.count("convert/") == 8
    assert text.count("<svg") == 2
    assert "KL divergence, nats a token" in page.text
    assert "tokens/s" in page.text
    assert "250" in page.said
    assert '<span class="del">-a plain text</span>' in text
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert "out/demo/one/one-ggml-f16.bin" in links
    assert "What went wrong" in page.text


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = Page(report(Past(tmp_path)))
    assert not page.tags & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "video",
        "audio",
        "use",
    }
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "xlink:href", "data")
        assert name != "href" or tag == "a"
        assert "url(" not in value
    policy = [value for tag, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_domains_and_memory_are_told() -> None:
    told = dict.fromkeys(("tokens", "perplexity", "reference_perplexity", "rise", "kl_p99", "kl_max", "agreement"), 1)
    told |= dict.fromkeys(("perplexity_se", "rise_se", "kl_se", "agreement_se"))  # type: ignore[arg-type]
    rows = []
    for number, (form, loss) in enumerate((("gguf-q4_k_m", 0.02), ("gguf-q5_k_m", 0.03), ("gguf-q8_0", 0.001))):
        full = {"tasks": {}, "layers": None, "domains": {"prose": {**told, "kl": loss}, "code": {**told, "kl": loss}}}
        smoke = {"kl_divergence": loss}
        rows.append(ArtifactRow(f"m/{form}", "m", form, "x", "done", "", 10**9 * (number + 1), smoke, full))
    rows.append(ArtifactRow("m/gguf-q2_k", "m", "gguf-q2_k", "x", "done", "", 10, {"kl_divergence": "no"}, {"x": 1}))
    text = report_html(RunData("r", "r.yaml", 0, 1, "done", artifacts=rows))
    page = Page(text)
    assert text.count("<polyline") == 2
    assert "Quality by domain" in page.text
    assert not page.tags & {"img", "script"}
    assert "1.10 GB" in page.text
    assert page.text.count("★") == 3, "not the one that loses more than a smaller one"


HOSTILE = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60),
    st.sampled_from(
        [
            "</pre><script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</style><b>",
            "{{ 7 * 7 }}{% raw %}",
            "]]><!--",
            "&lt;b&gt;&amp;#60;",
            "'onmouseover='x",
        ]
    ),
)


@settings(max_examples=15, deadline=None)
@given(HOSTILE)
def test_what_a_run_contains_is_never_markup(text: str) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        plain = Page(report(Past(Path(one))))
        page = Page(report(Past(Path(two), text=text)))
    assert page.tags <= plain.tags
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}
    assert "".join(shown(text).split()) in "".join(page.text.split())


@pytest.mark.parametrize("cut", [0, 1, 3, 8])
def test_a_run_that_was_killed(tmp_path: Path, cut: int) -> None:
    past = Past(tmp_path)
    lines = past.path.read_text().splitlines(keepends=True)
    past.path.write_text("".join(lines[:cut]) + '{"event": "StepFini')
    data = gather(past.path, past.store, tmp_path)
    assert data.status == "interrupted"
    Page(report_html(data))


def test_a_store_that_was_emptied(tmp_path: Path) -> None:
    past = Past(tmp_path)
    for path in sorted((past.store.root / "blobs").rglob("*")):
        if path.is_file():
            path.unlink()
    text = Page(report(past)).text
    assert "convert/one/ggml-f16@py3.11" in text
    assert "+0.40 %" not in text


def test_secrets_in_logs_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = Past(tmp_path, text="hf_plantedtoken")
    monkeypatch.setenv("HF_TOKEN", "hf_plantedtoken")
    data = gather(past.path, past.store, tmp_path)
    assert "***" in next(step.log for step in data.steps if step.stage == "engine")
    assert not any("hf_plantedtoken" in step.log + step.message for step in data.steps)


def rows(*losses: float | None, key: str = "kl_divergence", bad: int = -1) -> list[ArtifactRow]:
    """Artifacts of one model, of 1 kB, 2 kB and so on, and what they lose."""
    return [
        ArtifactRow(
            f"m/my-{at}", "m", f"my-{at}", "x", "failed" if at == bad else "done", "", 1000 * (at + 1), {key: loss}
        )
        for at, loss in enumerate(losses)
    ]


def page_of(artifacts: list[ArtifactRow]) -> tuple[str, Page]:
    text = report_html(RunData("r", "r.yaml", 0, 1, "done", artifacts=artifacts))
    return text, Page(text)


def test_a_plot_is_the_cards_one_in_the_pages_colours() -> None:
    """One piece of code draws both; here it has no heading, as the page has one, and no rules of its own."""
    text, _ = page_of(rows(0.1, 0.01, 0.0))
    svg = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    points = [PlotPoint(f"my-{at}", "", 1000 * (at + 1), loss) for at, loss in enumerate((0.1, 0.01, 0.0))]
    drawn = draw(
        points, ["m"], "KL divergence, nats a token", "m: KL divergence, nats a token, against size", width=360
    )
    assert drawn is not None
    assert re.sub("<title>m/my.*?</title>", "<title></title>", svg) == drawn.strip()
    assert "<style>" not in svg
    assert "svg .x,svg" not in text
    assert re.search(r"svg \.x\{[^}]*var\(--bad\)", text)


def test_what_failed_is_a_cross_with_its_figures() -> None:
    text, page = page_of(rows(0.1, 0.01, 0.9, bad=2))
    assert text.count('class="x"') == 1
    assert "A cross: did not pass its test." in page.text
    assert "m/my-2: 3.00 kB, KL divergence 0.9" in page.text
    assert "A cross" not in page_of(rows(0.1, 0.01))[1].text


def test_one_artifact_makes_no_plot_and_many_a_wide_one() -> None:
    assert "<svg" not in page_of(rows(0.1))[0]
    assert "<svg" not in page_of(rows(0.1, None))[0]
    assert 'class="card panel"' in page_of(rows(*[0.1] * 16))[0]
    text, page = page_of(rows(*(0.5 / (at + 1) for at in range(40))))
    assert 'class="card panel wide"' in text
    names = {name for said in page.said if re.fullmatch("(my-[0-9]+,? ?)+", said) for name in re.split(", ?", said)}
    assert len(names & {f"my-{at}" for at in range(40)}) > 35, "nearly all have room for their names"


def test_without_divergences_the_perplexity_is_shown_and_what_gains_costs_nothing() -> None:
    _, page = page_of(rows(0.02, -0.01, 0.0, key="perplexity_rise"))
    assert "rise of the perplexity, %" in page.said
    assert "≤ 0" in page.said
    assert "m/my-0: 1.00 kB, rise of the perplexity 2%" in page.said


def test_words() -> None:
    assert size_text(None) == "–"
    assert size_text(1870457) == "1.87 MB"
    assert figure("no number", "%.2f") == "–"
    assert figure(float("nan"), "%.2f") == "–"
    assert figure(0.0123, "%+.2f %%", 100) == "+1.23 %"
    assert [diff_kind(line) for line in ("+a", "-a", "+++ a", "@@", " a", "")] == ["add", "del", "at", "at", "", ""]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = Past(tmp_path)
    monkeypatch.chdir(tmp_path)
    store = ["--store", str(past.store.root)]
    done = CliRunner().invoke(cli, ["report", str(past.path), "-o", "page.html", *store])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    listed = CliRunner().invoke(cli, ["report", "--list", str(past.path), *store])
    assert "failed" in listed.output
    (tmp_path / "other.yaml").touch()
    refused = CliRunner().invoke(cli, ["report", "other.yaml", *store])
    assert "no run of it is kept" in str(refused.exception)
