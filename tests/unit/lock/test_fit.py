"""Formats that cannot hold a model's version are refused before anything runs, where the model is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvflow.base.errors import UsageError
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import Lock, LockedEngine, LockedFile
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.fit import check_recipe_versions, check_versions
from rwkvflow.plan.matrix import Artifact, expand
from rwkvflow.store.store import Store
from tests.helpers import checkpoints

SPLIT = "split: 100kB\n"


def lock(path: Path, **resolved: str) -> Lock:
    sha256 = file_digest(path).removeprefix("sha256:")
    size = path.stat().st_size
    files = {name: LockedFile(source=text, resolved=text, sha256=sha256, size=size) for name, text in resolved.items()}
    return Lock(recipe="r", models=files, images={}, engine=LockedEngine(kind="builtin", resolved="builtin"))


def test_a_local_checkpoint_and_one_in_the_store_are_looked_at(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "seven.pth", "7", layers=1, width=64, vocab=64)
    store = Store(tmp_path / "store")
    known = lock(path, here="seven.pth", there="https://example.org/seven.pth")
    both = [Artifact(model, name, "i") for model in known.models for name in ("ggml-f16", "faster-rwkv-f16")]
    with pytest.raises(UsageError) as caught:
        check_versions(both, known, tmp_path, store)
    first, *rest = caught.value.message.splitlines()
    assert first.startswith("here is version 7, which faster-rwkv-f16 cannot hold; these can: ")
    assert "ggml-*, gguf-*" in first
    assert ", faster-rwkv" not in first
    assert rest == []  # nobody has downloaded the other one
    store.adopt(path, file_digest(path))
    with pytest.raises(UsageError, match="there is version 7"):
        check_versions(both, known, tmp_path, store)


def test_what_goes_together_or_cannot_be_known_passes(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "four.safetensors", "4", layers=1, width=64, vocab=64)
    (tmp_path / "damaged.pth").write_bytes(b"PK nonsense")
    known = lock(path, four="four.safetensors", damaged="damaged.pth", absent="absent.pth")
    artifacts = [Artifact(model, "faster-rwkv-f32", "i") for model in known.models]
    check_versions(artifacts, known, tmp_path, Store(tmp_path / "store"))


def recipe(folder: Path, source: str, formats: str, more: str = "") -> Recipe:
    text = f"name: r\nmodels: [{{name: m, source: {source}}}]\nformats: [{formats}]\n{more}"
    return recipe_from_text(text, str(folder / "recipe.yaml"), folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_cannot_be_split_are_refused_once_their_size_is_known(tmp_path: Path, suffix: str) -> None:
    checkpoints.make(tmp_path / f"x{suffix}", "7", layers=1, width=64, vocab=64)
    wanted = recipe(tmp_path, f"x{suffix}", "ggml-f16, ggml-q4_0, safetensors, {format: web-rwkv, split: none}", SPLIT)
    with pytest.raises(UsageError) as caught:
        check_recipe_versions(wanted, tmp_path)
    (line,) = caught.value.message.splitlines()
    assert line.startswith("m: ggml-f16 would have 1")
    assert "more than the 100000 of `split`" in line
    assert "these can be split: gguf-f32, " in line
    assert ", transformers" in line
    known = lock(tmp_path / f"x{suffix}", m=f"x{suffix}")
    with pytest.raises(UsageError, match="m: ggml-f16 would have"):
        check_versions(expand(wanted), known, tmp_path, Store(tmp_path / "store"), wanted)
    check_recipe_versions(recipe(tmp_path, f"x{suffix}", "ggml-f16", "split: 1MB\n"), tmp_path)


def test_folders_and_split_checkpoints_are_looked_at(tmp_path: Path) -> None:
    entries = checkpoints.entries("7", layers=1, width=64, vocab=64)
    for number in (0, 1):
        checkpoints.write_safetensors(tmp_path / f"{number}.safetensors", entries[number::2])
    places = {entry.name: f"{number % 2}.safetensors" for number, entry in enumerate(entries)}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UsageError, match="m is version 7, which faster-rwkv-f16 cannot hold"):
        check_recipe_versions(recipe(tmp_path, index.name, "faster-rwkv-f16"), tmp_path)


def test_what_a_format_refuses_for_other_reasons_is_told_as_early(tmp_path: Path) -> None:
    checkpoints.make(tmp_path / "x.pth", "6", layers=1, width=64, vocab=64, lora={"maa": 16})
    wanted = recipe(tmp_path, "x.pth", "transformers", "image: {torch: '2.13.0'}\n")
    with pytest.raises(UsageError, match="m: transformers cannot hold a version 6 model with low-rank matrices of 16"):
        check_recipe_versions(wanted, tmp_path)
    quoted = "'x.pth', group_norm_eps: 1.0e-5"
    with pytest.raises(UsageError, match="head group norm has an epsilon of 1e-05"):
        check_recipe_versions(recipe(tmp_path, quoted, "gguf-f16"), tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "rows", "why"),
    [
        ("bytes", 65536, "it is another model's"),
        ("world", 65530, "rows, and this model has 65530"),
        ("auto", 65530, ""),
    ],
)
def test_a_tokenizer_of_another_model_is_told_before_anything_runs(
    tokenizer: str, rows: int, why: str, tmp_path: Path
) -> None:
    checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, head_size=64, vocab=rows)
    text = f"name: r\nmodels: [{{name: m, source: m.pth, tokenizer: {tokenizer}}}]\nformats: [ggml-f16]\n"
    read = recipe_from_text(text, str(tmp_path / "recipe.yaml"), tmp_path)
    if not why:
        check_recipe_versions(read, tmp_path)
        return
    with pytest.raises(UsageError, match=f"m: .*{why}"):
        check_recipe_versions(read, tmp_path)
