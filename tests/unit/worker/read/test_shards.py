"""Split models: read as one, refused in one line where the parts are none of one model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.compare import compare
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.read.shards import open_model, shard_name
from tests.helpers import checkpoints

SIZES: dict[str, Any] = {"layers": 1, "width": 64, "vocab": 40}


def split(folder: Path, parts: int = 3, suffix: str = ".safetensors") -> Path:
    """The index of a split checkpoint."""
    folder.mkdir(exist_ok=True)
    entries = checkpoints.entries("7", "bf16", **SIZES)
    weight_map: dict[str, str] = {}
    for number in range(parts):
        name = shard_name("model", number + 1, parts, suffix)
        own = entries[number::parts]
        (checkpoints.write_safetensors if suffix == ".safetensors" else checkpoints.write_pth)(folder / name, own)
        weight_map |= {entry.name: name for entry in own}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_index_reads_as_the_whole(tmp_path: Path, suffix: str) -> None:
    whole = checkpoints.make(tmp_path / "whole.pth", "7", "bf16", **SIZES)
    index = split(tmp_path / "parts", suffix=suffix)
    for path in (index, index.parent):
        with open_checkpoint(whole) as one, open_checkpoint(path) as many:
            assert set(one.tensors) == set(many.tensors)
            for name, info in one.tensors.items():
                assert many.tensors[name] == info
                assert np.array_equal(one.read(name), many.read(name))
            assert many.verify() >= (0 if suffix == ".safetensors" else one.verify() - 9)
        assert {item.kind for item in compare(whole, path)} == {"equal"}
    found = describe(index)
    assert found["files"] == [shard_name("model", number, 3, suffix) for number in (1, 2, 3)]
    assert found["bytes"] == sum(index.with_name(name).stat().st_size for name in found["files"])
    assert found["architecture"]["version"] == "7"


def missing(index: Path) -> None:
    index.with_name("model-00002-of-00003.safetensors").unlink()


def twice(index: Path) -> None:
    shutil.copy(
        index.with_name("model-00001-of-00003.safetensors"), index.with_name("model-00003-of-00003.safetensors")
    )


def truncated(index: Path) -> None:
    part = index.with_name("model-00002-of-00003.safetensors")
    part.write_bytes(part.read_bytes()[:-1])


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(index: Path) -> None:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return edit


PART = "model-00001-of-00003.safetensors"
OTHER = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, r"part 2 of 3, model-00002-of-00003\.safetensors, is missing"),
        (twice, "no parts of one model"),
        (truncated, r"model-00002-of-00003\.safetensors: broken safetensors"),
        (edited(lambda places: places.update({"emb.weight": OTHER})), "is in model-00002.*is in model-00001"),
        (edited(lambda places: places.update({"more": PART})), "'more' is in .*is not there"),
        (edited(lambda places: places.pop("emb.weight")), "says nothing of 'emb.weight'"),
        (edited(lambda places: places.update({"emb.weight": "../x"})), "no file beside it"),
        (edited(lambda places: places.update({"emb.weight": ["x"]})), "no file beside it"),
        (edited(lambda places: places.update({str(i): f"{i}.safetensors" for i in range(600)})), "names 603 files"),
        (edited(dict.clear), "no weight_map"),
        (lambda index: index.write_text("[" * 10000), "not JSON"),
        (lambda index: index.write_text("[]"), "no weight_map"),
        (lambda index: index.write_bytes(b"\xff"), "not JSON"),
    ],
)  # fmt: skip
def test_an_index_that_lies(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    index = split(tmp_path)
    damage(index)
    with pytest.raises(WorkerError, match=words) as caught, open_checkpoint(index):
        pass
    assert "\n" not in str(caught.value)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="a folder without a model"):
        open_model(tmp_path)
    checkpoints.make(tmp_path / "a.safetensors", "7", **SIZES)
    with open_model(tmp_path) as file:
        assert file.name == "a.safetensors"
    checkpoints.make(tmp_path / "b.safetensors", "7", **SIZES)
    with pytest.raises(WorkerError, match=r"several models \(a.safetensors, b.safetensors\)"):
        open_model(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.data())
def test_bytes_across_parts(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("parts")
    whole = bytes(range(sum(sizes)))
    at = 0
    for number, size in enumerate(sizes, 1):
        (folder / shard_name("x", number, len(sizes))).write_bytes(whole[at : at + size])
        at += size
    with open_model(folder / shard_name("x", 1, len(sizes))) as file:
        assert file.size == len(whole)
        start = data.draw(st.integers(0, len(whole)))
        count = data.draw(st.integers(0, len(whole) - start))
        assert file.bytes_at(start, count) == whole[start : start + count]
