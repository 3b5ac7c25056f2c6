"""Files for Ollama: its template is Go's, and gives the prompts that the models were trained on; a Modelfile parses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rwkvflow.engine.prompts import STOPS, render
from rwkvflow.release.artifacts import Row
from rwkvflow.release.ollama import CHAT, MODELFILE, PARAMS, PLAIN, TEMPLATE, modelfile, ollama_files
from rwkvflow.worker.model.versions import HYBRIDS
from tests.helpers.modelfiles import PARAMETERS, read_modelfile

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "ollama"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
RENDERED = json.loads((GOLDEN / "rendered.json").read_text(encoding="utf-8"))


def row(name: str, tokenizer: str = "world", model: str = "m") -> Row:
    path = f"{model}/{model}-{name}.gguf"
    return Row(model, f"gguf-{name}", path, "sha256:" + "0" * 64, 10, (), {"tokenizer": tokenizer}, files=(path,))


def test_what_go_rendered_is_this_template() -> None:
    """Another one is rendered anew: go run tests/golden/ollama/render.go."""
    assert RENDERED["template"] == CHAT
    assert len(RENDERED["texts"]) == len(CASES) > 5


@pytest.mark.parametrize(("messages", "text"), zip(CASES, RENDERED["texts"], strict=True))
def test_go_makes_of_messages_what_the_model_was_trained_on(messages: list[dict[str, str]], text: str) -> None:
    assert text == render(messages).text


def test_a_repository_gets_template_and_params_where_every_gguf_is_of_a_world_model() -> None:
    made = {file.path: file.source for file in ollama_files([row("q4_k_m"), row("q8_0", model="n")], None)}
    assert sorted(made) == [f"m/{MODELFILE}", f"n/{MODELFILE}", PARAMS, TEMPLATE]
    assert made[TEMPLATE] == CHAT.encode()
    params = json.loads(bytes(made[PARAMS]))
    assert params == {"stop": list(STOPS)}
    assert set(params) <= PARAMETERS
    mixed = {file.path for file in ollama_files([row("q4_k_m"), row("q8_0", "bytes", "n")], None)}
    assert mixed == {f"m/{MODELFILE}", f"n/{MODELFILE}"}


def test_a_file_in_parts_and_other_formats_have_none() -> None:
    split = replace(row("q4_k_m"), files=("m/a.gguf", "m/b.gguf"))
    other = replace(row("q8_0"), format="ggml-q8_0")
    assert ollama_files([split, other], None) == []


def test_a_modelfile_says_what_it_means_to_ollamas_parser() -> None:
    text = modelfile([row("f16"), row("q8_0"), row("q4_k_m")], "apache-2.0")
    assert read_modelfile(text) == [
        ("from", "./m-q4_k_m.gguf"),
        ("template", CHAT),
        *(("parameter stop", stop) for stop in STOPS),
        ("license", "apache-2.0"),
    ]
    assert "# or FROM ./m-q8_0.gguf\n# or FROM ./m-f16.gguf\n" in text
    assert all(character.isprintable() or character == "\n" for character in text), "Ollama drops the others"


@pytest.mark.parametrize("version", HYBRIDS)
def test_a_hybrid_has_the_template_of_its_folder(version: str) -> None:
    hybrid = replace(row("q8_0", "tokenizer.json"), facts={"architecture": {"version": version}})
    assert read_modelfile(modelfile([hybrid], None)) == [("from", "./m-q8_0.gguf")]


def test_a_model_whose_conversations_nobody_described_continues_texts() -> None:
    assert read_modelfile(modelfile([row("q8_0", "bytes")], None)) == [("from", "./m-q8_0.gguf"), ("template", PLAIN)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("TEMPLATE x\n", "no FROM"),
        ("FROM x\nWHAT y\n", "no command"),
        ("FROM x\nPARAMETER stops y\n", "unknown parameter"),
        ("FROM x\nFROM\n", "no command"),
    ],
)
def test_the_checker_refuses_what_ollama_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_modelfile(text)
