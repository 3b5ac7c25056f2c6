"""Recipes of the hybrids: what `init` writes, what a lock pins of their folders, what is refused before a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rwkvflow.app.sizes import sizes
from rwkvflow.base.errors import UsageError
from rwkvflow.cli import cli
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock import header
from rwkvflow.lock.files import _wanted
from rwkvflow.lock.fit import check_recipe_versions
from rwkvflow.release.model_card.front_matter import _tag
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.cards import CardFile, card_of
from rwkvflow.worker.formats.runtimes import runs
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.versions import HYBRIDS
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import hybrid_folders
from tests.unit.app.test_sizes import prepared

FOLDER = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
BY_MODEL = pytest.mark.parametrize("model", hybrid_folders.MODELS)


def recipe(folder: Path, formats: str, more: str = "", of_model: str = "") -> Recipe:
    text = f"name: r\nmodels: [{{name: m, source: m{of_model}}}]\nformats: [{formats}]\n{more}"
    return recipe_from_text(text, str(folder / "recipe.yaml"), folder)


@BY_MODEL
def test_formats_that_cannot_hold_it_are_refused_before_a_run(model: str, tmp_path: Path) -> None:
    hybrid_folders.make(tmp_path / "m", model)
    with pytest.raises(UsageError) as caught:
        check_recipe_versions(recipe(tmp_path, "ggml-f16, safetensors, gguf-f16, mlx"), tmp_path)
    assert caught.value.message.startswith("m is ")
    assert f"({model}), which ggml-f16 and safetensors and mlx cannot hold; these can: gguf-*" in caught.value.message
    check_recipe_versions(recipe(tmp_path, "gguf-f16, gguf-q4_k_m"), tmp_path)


@pytest.mark.parametrize(
    ("formats", "more", "of_model", "said"),
    [
        ("gguf-q4_k_m", "", ", imatrix: {}", "imatrix"),
        ("gguf-q4_k_m", "smoke: {quality: full}\n", "", "smoke.quality: full"),
        ("{format: gguf-q4_k_m-mixed, target: {kl: 0.1}}", "", "", "target"),
    ],
)
def test_what_librwkv_would_have_to_compute_is_refused(
    formats: str, more: str, of_model: str, said: str, tmp_path: Path
) -> None:
    hybrid_folders.make(tmp_path / "m", "arwkv7")
    with pytest.raises(UsageError) as caught:
        check_recipe_versions(recipe(tmp_path, formats, more, of_model), tmp_path)
    assert f"m is ARWKV-7 (arwkv7), which librwkv does not run, and {said} of the recipe" in caught.value.message


@BY_MODEL
def test_a_lock_pins_what_a_gguf_of_it_has_in_it(model: str) -> None:
    config = json.dumps(hybrid_folders.config(model)).encode()
    names = [*FOLDER, "tokenizer_config.json"]
    assert _wanted("m", names, lambda name: config) == sorted({*names} - {"generation_config.json"})


@pytest.mark.parametrize("config", [b'{"architectures": ["RWKV7ForCausalLM"]}', b"{", b"[]", b"[" * 100_000])
def test_a_lock_of_another_folder_pins_what_it_did(config: bytes) -> None:
    names = [*FOLDER, "tokenizer_config.json"]
    assert _wanted("m", names, lambda name: config) == ["config.json", "model.safetensors", "tokenizer.json"]


@BY_MODEL
def test_init_writes_formats_that_hold_it(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hybrid_folders.make(tmp_path / "m", model)
    result = CliRunner().invoke(cli, ["init", "m", "-o", "m.yaml"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "m.yaml").read_text(encoding="utf-8")
    made = recipe_from_text(text, "m.yaml", tmp_path)
    assert made.models[0].tokenizer == "m/tokenizer.json"
    check_recipe_versions(made, tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
    assert [FORMATS[entry].refuse(architecture) for entry in _names(made)] == [None] * 3


def test_a_repository_is_asked_for_its_config_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    content = json.dumps(hybrid_folders.config("arwkv7")).encode()

    def ranges(url: str, authorize: Any, connection: Any) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(header, "_Ranges", ranges)
    assert header.is_hybrid("hf://RWKV-Red-Team/ARWKV-7B-Preview-0.1", tmp_path)
    assert [url.rpartition("/")[2] for url in asked] == ["config.json"]
    assert not header.is_hybrid("hf://a/b/model.pth", tmp_path)
    assert not header.is_hybrid("m.pth", tmp_path)
    assert len(asked) == 1
    content = b"nothing"
    assert not header.is_hybrid("hf://a/b", tmp_path)


@BY_MODEL
def test_a_plan_says_the_very_size(model: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    run = prepared("m", ["gguf-f16", "gguf-q5_k_m", "ggml-f16"], tmp_path)
    bare = run.blueprint.models["tiny"].model_copy(update={"tokenizer": "auto", "imatrix": None})
    given = run.blueprint.recipe.model_copy(update={"models": [bare]})
    object.__setattr__(run.blueprint, "recipe", given)
    told = sizes(run)
    assert {name.partition("@")[0] for name in told} == {"tiny/gguf-f16", "tiny/gguf-q5_k_m"}
    with open_checkpoint(source) as checkpoint:
        plain = (
            FORMATS["gguf-f16"].beside(source).expected_size(architecture_of(checkpoint.tensors), checkpoint.tensors)
        )
    assert told[next(name for name in told if "f16" in name)] > plain  # it says its name and licence as well


@pytest.mark.parametrize("version", HYBRIDS)
def test_a_card_names_llama_cpp_alone(version: str) -> None:
    assert runs("llama.cpp", version)
    assert not runs("librwkv", version)
    card = card_of(FORMATS["gguf-q8_0"], version)
    assert card is not None
    commands = card.commands(CardFile("m-Q8_0.gguf", ("m-Q8_0.gguf",), version))
    assert "librwkv" not in card.title + card.text
    assert len(commands) == 1
    assert commands[0].startswith("llama-completion -m m-Q8_0.gguf")
    assert _tag(version) == version
    assert (_tag("7"), _tag("5.2")) == ("rwkv7", "rwkv5")


def _names(made: Recipe) -> list[str]:
    from rwkvflow.plan.matrix import expand

    return list(dict.fromkeys(artifact.format for artifact in expand(made)))
