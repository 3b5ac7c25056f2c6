"""The card: golden, readable by the hub's own client, safe whatever a recipe says, and the user's own where wanted."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import PublishError
from rwkvflow.base.text import bytes_text, shown
from rwkvflow.release.artifacts import Row
from rwkvflow.release.model_card.card import cell, human_count, quoted, share, small
from rwkvflow.release.model_card.front_matter import yaml_text
from rwkvflow.release.model_card.runtimes import first_commands, ollama_tag, runtimes
from rwkvflow.worker.conversion.jobs import shown_bytes
from rwkvflow.worker.formats.runtimes import RUNTIMES
from tests.helpers import checkpoints
from tests.helpers.releases import Made, made

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "card"


@pytest.fixture
def run(tmp_path: Path) -> Made:
    return made(tmp_path / "store")


def text_of(run: Made, path: str = "README.md") -> str:
    data = next(file.source for file in run.assemble().files if file.path == path)
    assert isinstance(data, bytes)
    return data.decode()


def own(run: Made, template: str, tmp_path: Path) -> str:
    path = tmp_path / "card.md.j2"
    path.write_text(template, encoding="utf-8")
    run.add("card-template", path)
    return text_of(run)


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_card_is_the_golden_one(run: Made) -> None:
    golden("folder.md", text_of(run))
    golden("quality.svg", text_of(run, "quality.svg"))


def test_the_card_of_a_hub_release_is_the_golden_one(run: Made) -> None:
    run.params["to"] = "hf://someone/tiny-rwkv"
    run.params["smoke_text"] = "my text.txt"
    run.params["card"] = {
        "title": "Tiny *models*",
        "about": "Two models of zeros.",
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": ["someone/tiny7", "someone/tiny4"],
        "tags": ["zeros", "rwkv"],
        "quantized_by": "someone",
    }
    del run.inputs["smoke/tiny4/ggml-q5_1@py3.11"]
    golden("hub.md", text_of(run))


def test_the_hubs_client_reads_the_front_matter_and_the_results(run: Made) -> None:
    run.params["card"] = {"license": "apache-2.0", "language": ["en", "no"]}
    data = ModelCard(text_of(run)).data
    assert isinstance(data, ModelCardData)
    assert data.license == "apache-2.0"
    assert data.language == ["en", "no"], "Norwegian is no boolean"
    assert data.base_model == ["someone/tiny7"]
    assert data.pipeline_tag == "text-generation"
    assert {"rwkv", "rwkv4", "rwkv7", "ggml", "safetensors"} <= set(data.tags or ())
    assert [result.metric_value for result in data.eval_results or ()] == [12.625, 12.5, 12.625, 12.5]
    assert {result.metric_type for result in data.eval_results or ()} == {"perplexity"}


def test_what_is_not_known_is_left_out(run: Made) -> None:
    run.params["models"].pop("tiny7")
    data = yaml.safe_load(text_of(run).split("---\n")[1])
    assert not {"license", "language", "base_model", "base_model_relation"} & set(data)


def test_the_table_has_every_artifact_with_its_figures(run: Made) -> None:
    text = text_of(run)
    for row in run.assemble().rows:
        line = next(line for line in text.splitlines() if f"({row.path})" in line)
        assert row.sha256 not in text, "checksums stand in a file"
        assert f"| {row.smoke['bits_per_weight']:.2f} |" in line
        assert (" † | " in line) == (row.format == "safetensors")
        assert ("| 0.00416 | 100.0 % |" in line) == (row.format == "ggml-q5_1")
        assert (Path(row.path).name.replace("_", "\\_")) in line
    assert " tokens/s " not in text
    assert "[SHA256SUMS](SHA256SUMS) the checksums" in text


def test_speed_has_a_column_where_it_was_measured(run: Made, tmp_path: Path) -> None:
    report = run.inputs["smoke/tiny7/ggml-q5_1@py3.11"]
    speed = {"tokens_per_second": 81.25, "speed": {"tokens": 504, "threads": 2, "cpu": "A *fast* one"}}
    report.write_text(json.dumps(json.loads(report.read_text()) | speed))
    text = text_of(run)
    lines = [line for line in text[text.index("## Files") :].splitlines() if line.startswith("|")]
    table = [line.strip("|").split(" | ") for line in lines[: 2 + 4]]
    assert "tokens/s" in lines[0]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[: 2 + 4]}) == 1, table
    assert "| 81.2 |" in lines[2]
    assert "| – |" in lines[3]
    assert "on A \\*fast\\* one (2 threads)." in text_of(run)


@pytest.mark.parametrize(
    ("target", "gap", "said"),
    [
        ({"bits_per_weight": 4.5}, 0.0012, "No choice treats its worst text better by more than 0.12 %."),
        ({"size": 900_000_000}, 0.0, "No choice treats its worst text better by more than 0.00 %."),
        ({"kl": 0.01}, 0.002, "No choice is smaller by more than 0.20 %."),
        ({"kl": 0.01}, None, "4.500 bits a weight."),
    ],
)
def test_a_search_of_types_is_told_with_its_target(
    run: Made, tmp_path: Path, target: dict[str, float], gap: float | None, said: str
) -> None:
    """As the task `assign` reports it."""
    told = {"target": target, "counts": {"q4_k": 20, "q6_k": 4}, "bits_per_weight": 4.5, "gap": gap, "texts": {}}
    path = tmp_path / "types.json"
    path.write_text(json.dumps(told))
    run.add("types/tiny7/ggml-q5_1@py3.11", path)
    lines = text_of(run).splitlines()
    (at,) = [at for at, line in enumerate(lines) if "types chosen by what each matrix loses alone" in line]
    line = lines[at]
    assert lines[at + 1] == ""
    line = line.replace("\\", "")
    ((name, value),) = target.items()
    assert f"loses alone (q4_k: 20, q6_k: 4), for a target of {name}: {value:g}. It has " in line or name == "size"
    assert line.endswith(said), line


def test_files_that_no_runtime_ran_say_how_they_were_proved(run: Made) -> None:
    assert "\n† No runtime of its own ran it" in text_of(run)
    line = next(line for line in text_of(run).splitlines() if line.endswith(": safetensors read it"))
    assert line == "* **tiny7/tiny7.safetensors, tiny4/tiny4.safetensors**: safetensors read it"
    for name, path in run.inputs.items():
        if name.startswith("smoke/"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluated": "runtime"}))
    assert "†" not in text_of(run)


def test_what_smoke_remarked_is_told_of_the_files_that_it_is_about(run: Made) -> None:
    paths = sorted(path for name, path in run.inputs.items() if name.startswith("smoke/"))
    for path, note in zip(paths, ["not run: no driver", "not run: no driver", None, "odd"], strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"note": note}))
    text = text_of(run)
    assert text.count("not run: no driver") == 1
    line = next(line for line in text.splitlines() if "not run: no driver" in line)
    assert line.count(",") == 1
    for path in paths:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "random weights"}))
    assert "\n* random weights\n" in text_of(run)


def test_every_format_of_the_registry_says_how_it_is_run() -> None:
    from rwkvflow.worker.formats import FORMATS

    for entry in FORMATS.values():
        for version in entry.versions:
            path = f"m/m{entry.suffix}"
            facts = {"architecture": {"version": version}}
            (told,) = runtimes([Row("m", entry.name, path, "", 1, (), {"consumer": entry.consumer}, facts, (path,))])
            assert told.text
            lines = [*told.setup, *told.commands[0][1]]
            assert any(path.removesuffix(".pth") in line for line in lines)
            for line in lines:
                assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0, line
                words = shlex.split(line)
                if "-c" in words:
                    compile(words[words.index("-c") + 1], line, "exec")
            assert ("rwkv.cpp/" in " ".join(lines)) == (
                entry.name.startswith("ggml-") and "_k" not in entry.name and version != "5.1"
            )
            # A card names no runtime that does not run this version: not to install, not to call, not as its title.
            named = " ".join([told.title, *lines])
            for runtime in RUNTIMES:
                if version not in runtime.runs:
                    assert not re.search(rf"(?<![\w-]){re.escape(runtime.name)}(?![\w-])", named), (entry.name, version)
            ours = [runtime for runtime in RUNTIMES if entry.family in runtime.families and version in runtime.runs]
            assert ours, f"nothing runs {entry.name} of version {version}"


@pytest.mark.parametrize("name", ["onnx-f32", "ncnn-f16"])
def test_what_the_card_says_of_folders_runs(name: str, tmp_path: Path) -> None:
    """As it stands there, in the folder of the release."""
    pytest.importorskip({"onnx-f32": "onnxruntime", "ncnn-f16": "ncnn"}[name])
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.base import FolderFormat
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.tensorinfo import TensorInfo

    entry = FORMATS[name]
    assert isinstance(entry, FolderFormat)
    shapes = checkpoints.shapes("4", layers=1, width=32, vocab=40)
    tensors = {tensor: TensorInfo(tensor, "f32", shape) for tensor, shape in shapes.items()}
    path = f"m/m{entry.suffix}"
    (tmp_path / path).mkdir(parents=True)
    for file, layout in entry.layouts(architecture_of(tensors), tensors).items():
        data = bytearray(layout.size)  # weights of zero
        for offset, literal in layout.literals:
            data[offset : offset + len(literal)] = literal
        (tmp_path / path / file).write_bytes(data)
    facts = {"architecture": {"version": "4"}}
    (told,) = runtimes([Row("m", name, path, "", 1, (), {"consumer": entry.consumer}, facts, (path,))])
    (line,) = told.commands[0][1]
    words = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("output_state_0_3" if name == "ncnn-f16" else "0. 0. 0.") in done.stdout


def test_a_format_that_is_not_known_is_told_by_what_proved_it() -> None:
    (told,) = runtimes([Row("m", "strange", "m/m.x", "", 1, (), {"consumer": "strange-py"}, {}, ("m/m.x",))])
    assert (told.title, told.text) == ("strange", "Run and compared with strange-py.")


def test_every_command_is_valid_shell_and_names_files_of_the_release(run: Made) -> None:
    run.params["to"] = "hf://someone/tiny-rwkv"
    text = text_of(run)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
    for row in run.assemble().rows:
        assert any(row.path in block for block in blocks), f"nothing says how to run {row.path}"


def test_which_file_and_how_to_begin_stand_first(run: Made) -> None:
    text = text_of(run)
    assert text.index("## Which file for me?") < text.index("rwkvflow chat ") < text.index("## Files")
    told = [line.removeprefix("rwkvflow chat ") for line in text.splitlines() if line.startswith("rwkvflow chat ")]
    rows = {row.path: row for row in run.assemble().rows}
    assert [rows[path].model for path in told] == list(dict.fromkeys(row.model for row in rows.values()))


def test_the_first_commands_are_of_files_that_fit_the_program() -> None:
    def row(name: str, bits: float, loss: float | None, **smoke: Any) -> Row:
        path = f"m/m-{name.partition('-')[2].upper()}"
        return Row("m", name, path, "", int(bits * 1e6), (), {"kl_divergence": loss, **smoke}, {}, (path + ".gguf",))

    def rows(*listed: Row) -> list[Row]:
        return [replace(each, path=each.files[0], facts={"weights": 1}) for each in listed]

    listed = rows(
        row("gguf-f16", 16, 0.0, bits_per_weight=16.0),
        row("gguf-q8_0", 8.5, 0.001, bits_per_weight=8.5),
        row("gguf-q4_k_m", 5.0, 0.01, bits_per_weight=5.0),
        row("onnx-f16", 16, 0.0, bits_per_weight=16.0),
    )
    told = [(one.program, one.line) for one in first_commands(listed, "someone/m")]
    assert told == [
        ("rwkvflow", "rwkvflow chat m/m-Q8_0.gguf"),
        ("llama.cpp", "llama-cli -m m/m-Q8_0.gguf --jinja -cnv"),
        ("Ollama", "ollama run hf.co/someone/m:Q8_0"),
    ]
    assert [one.program for one in first_commands(listed, None)] == ["rwkvflow", "llama.cpp"]
    refused = rows(row("gguf-q8_0", 8.5, 0.001, bits_per_weight=8.5, not_for={"llama.cpp": "why"}))
    assert [one.program for one in first_commands(refused, None)] == ["rwkvflow"]
    assert first_commands(listed[3:], None) == []
    tags = [ollama_tag(each) for each in rows(row("gguf-q4_k_m", 5, 0.1), row("gguf-q4_k_m-mixed", 5, 0.1))]
    assert tags == ["Q4_K_M", ""]


# ---- a template of the user's ----------------------------------------------------------------------------------


def test_a_template_of_the_users_replaces_the_shipped_one(run: Made, tmp_path: Path) -> None:
    text = own(
        run, "# {{ name }}\n{% for row in rows %}{{ row.path }} {{ row.bits | figure(1) }}\n{% endfor %}", tmp_path
    )
    assert text.startswith("# tiny\ntiny7/tiny7-Q5_1.bin 9.5\n")


def test_it_may_build_on_the_shipped_one(run: Made, tmp_path: Path) -> None:
    plain = text_of(run)
    text = own(run, '{% extends "README.md.j2" %}{% block about %}Mine.\n\n{% endblock %}', tmp_path)
    assert "Mine." in text
    assert text.split("## Files")[1] == plain.split("## Files")[1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{ nmae }}", r"line 2: 'nmae' is undefined"),
        ("a\n\n{% if %}", r"line 3: Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", r"access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ rows.append(1) }}", r"no attribute 'append'|unsafe"),
        ("{{ params.update(x=1) }}", r"unsafe"),
        ("{% include '/etc/passwd' %}", r"etc/passwd"),
        ("{% include '../card.py' %}", r"card.py"),
        ("{% for i in range(10**9) %}x{% endfor %}", r"Range too big"),
        ("{{ 1 // 0 }}", r"division|modulo"),
        ("{{ rows[99].path }}", r"no element 99|undefined"),
        ("{{ lipsum.__globals__['os'].popen('id').read() }}", r"unsafe|undefined"),
    ],
)
def test_its_mistakes_are_said_and_it_can_do_no_harm(run: Made, tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(PublishError, match=message):
        own(run, template, tmp_path)


def test_a_template_that_is_no_text_is_refused(run: Made, tmp_path: Path) -> None:
    (tmp_path / "card").write_bytes(b"\xff\xfe\xff")
    run.add("card-template", tmp_path / "card")
    with pytest.raises(PublishError, match="cannot be read"):
        run.assemble()


# ---- text from anywhere ----------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
VALUE = st.recursive(
    st.one_of(TEXT, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.none()),
    lambda inner: st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, st.one_of(VALUE, st.lists(VALUE, max_size=4)), max_size=6))
def test_yaml_is_read_back_as_it_was_written(value: dict[str, Any]) -> None:
    text = yaml_text(value)
    assert "\n---" not in text
    back = yaml.safe_load(text) or {}
    assert same(back, value), text


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-11)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize(
    "word", ["no", "On", "y", "null", "~", "1e3", "0o17", "012", ".5", "", "- a", "a: b", "2024-01-01"]
)
def test_words_that_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    assert yaml_text({"language": word}) == f'language: "{word}"\n'


@given(title=TEXT.filter(str.strip), source=TEXT, text=TEXT, reason=TEXT)
def test_nothing_from_a_recipe_breaks_out_of_its_place(title: str, source: str, text: str, reason: str) -> None:
    from rwkvflow.release.model_card.card import render_card

    smoke = {"perplexity": 1.0, "text_tokens": 1, "continuations": [{"prompt": text, "text": text}]}
    row = Row("m", "ggml-f32", "m/m.bin", "sha256:" + "0" * 64, 1, ("i",), smoke, {}, ("m/m.bin",))
    params = {
        "models": {"m": {"source": source, "size": 1, "sha256": "0" * 64}},
        "engine": {"source": source},
        "card": {"title": title, "license": title, "tags": [text], "base_model": [source]},
    }
    card = render_card("r", [row], {"m/x@i": reason}, params)
    front = card.split("---\n")
    data = yaml.safe_load(front[1])
    assert data["license"] == title
    assert data["base_model"] == [source] or not source
    body = card[card.index("\n---\n") + 5 :]
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert len(tables) == 9, "no row was added or broken"
    assert body.count("```") == 2 * len(re.findall(r"^```sh$", body, re.MULTILINE))
    assert "<script" not in body
    assert len(re.findall(r"^# ", body, re.MULTILINE)) == 1


@given(TEXT)
def test_a_cell_and_code_are_one_line_without_markup(text: str) -> None:
    assert len(cell(text).splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]]", cell(text))
    assert "<" not in cell(text)
    assert quoted(text)[1:-1].count("`") == 0
    assert len(quoted(text).splitlines()) == 1


def test_figures_in_words() -> None:
    shown = [small(value) for value in (0, 0.0, 1e-6, 0.000416, 0.25, 1.5, 1234.5, None)]
    assert shown == ["0", "0", "0.000001", "0.000416", "0.25", "1.5", "1.23e+03", "–"]
    assert [share(value) for value in (0.987, 1, None)] == ["98.7 %", "100.0 %", "–"]


def test_sizes_and_counts_in_words() -> None:
    sizes = (0, 999, 1000, 1536, 999_999, 151_000_000, 3 << 30)
    told = ["0 B", "999 B", "1.00 kB", "1.54 kB", "1.00 MB", "151.00 MB", "3.22 GB"]
    assert [bytes_text(size) for size in sizes] == told
    assert [shown_bytes(size) for size in sizes] == told, "the worker has no base, and says it alike"
    assert [human_count(n) for n in (7, 62400, 191034368, 1_500_000_000, None)] == [
        "7",
        "62.4 K",
        "191 M",
        "1.5 B",
        "–",
    ]


@pytest.mark.parametrize("template", [None, "{{ title }}\n{{ about }}\n{{ rows[0].smoke.continuations }} \x1b[31m"])
def test_no_control_sequence_is_left_in_a_card(run: Made, tmp_path: Path, template: str | None) -> None:
    """Of a recipe, a model's tokens, or a template: in text, tables and front matter alike."""
    hostile = "\x1b[2J\x9b31m\u202eevil\u2066\x07\U000e0041"
    card = {"title": f"t{hostile}", "about": f"one{hostile}\ntwo", "tags": [f"x{hostile}"], "quantized_by": hostile}
    run.params["card"] = card
    for path in [path for name, path in run.inputs.items() if name.startswith("smoke/")]:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["continuations"] = [{"prompt": f"p{hostile}", "text": f"c{hostile}"}]
        report["note"] = f"n{hostile}"
        path.write_text(json.dumps(report), encoding="utf-8")
    text = text_of(run) if template is None else own(run, template, tmp_path)
    assert shown(text) == text
    assert "\\x1b[2J" in text
    if template is None:
        data = ModelCard(text).data
        assert isinstance(data, ModelCardData)
        assert (data.tags or [])[-1] == f"x{hostile}"
