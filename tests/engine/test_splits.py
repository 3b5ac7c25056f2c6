"""Artifacts split over files: the same tensors as in one file, no file above the size, and llama.cpp runs them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import Split
from rwkvflow.worker.formats.gguf.llama import Llama
from rwkvflow.worker.formats.runner import Task, answer, run_artifact
from rwkvflow.worker.read.compare import compare
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Questions
from tests.engine import encoder, llama_cpp
from tests.helpers import checkpoints

SIZES: dict[str, Any] = {"layers": 3, "width": 128, "vocab": 256}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    encoder.build(folder, encoder.any_compiler())
    return folder


def made(source: Path, engine: Path, name: str, target: Path, size: int | None = None, stem: str = "m") -> Path:
    split = Split(size, stem) if size else None
    (outcome,) = convert(source, engine, [ConversionJob(name, name, target, split)])
    assert outcome.failure is None
    return target


@pytest.fixture(scope="session", params=["6", "7"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("source") / "m.pth", request.param, "bf16", **SIZES)


@pytest.mark.parametrize("name", ["gguf-f32", "gguf-q5_1", "safetensors", "safetensors-f16"])
def test_a_split_artifact_holds_the_same(name: str, source: Path, engine: Path, tmp_path: Path) -> None:
    whole = made(source, engine, name, tmp_path / "whole")
    limit = whole.stat().st_size // 3
    folder = made(source, engine, name, tmp_path / "parts", limit)
    files = sorted(folder.iterdir())
    weights = [path for path in files if path.suffix != ".json"]
    assert len(weights) >= 4
    assert weights[0].name == f"m-00001-of-{len(weights):05d}{'.gguf' if 'gguf' in name else '.safetensors'}"
    assert all(path.stat().st_size <= limit for path in weights)
    assert sum(path.stat().st_size for path in weights) < whole.stat().st_size * 1.1
    for path in (folder, weights[0] if "gguf" in name else folder / "m.safetensors.index.json"):
        differences = list(compare(whole, path))
        assert {item.kind for item in differences} == {"equal"}
        assert differences
    again = made(source, engine, name, tmp_path / "again", limit)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [path.read_bytes() for path in files]
    assert made(source, engine, name, tmp_path / "fits", whole.stat().st_size).read_bytes() == whole.read_bytes()


def test_shards_say_what_llama_cpp_wants_of_them(source: Path, engine: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    whole = made(source, engine, "gguf-f16", tmp_path / "whole")
    folder = made(source, engine, "gguf-f16", tmp_path / "parts", 300_000)
    every = {tensor.name: np.array(tensor.data) for tensor in package.GGUFReader(whole).tensors}
    shards = sorted(folder.iterdir())
    found: dict[str, np.ndarray] = {}
    for number, path in enumerate(shards):
        reader = package.GGUFReader(path)
        said = {key: reader.fields[f"split.{key}"].parts[-1] for key in ("no", "count", "tensors.count")}
        assert {key: value.dtype.name for key, value in said.items()} == {
            "no": "uint16",
            "count": "uint16",
            "tensors.count": "int32",
        }
        assert [int(value[0]) for value in said.values()] == [number, len(shards), len(every)]
        assert ("general.architecture" in reader.fields) == (number == 0)
        found |= {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert list(found) == list(every)
    assert all(np.array_equal(found[name], values) for name, values in every.items())


def test_safetensors_are_read_by_their_own_package(source: Path, engine: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors")
    folder = made(source, engine, "safetensors-f32", tmp_path / "parts", 400_000)
    index = json.loads((folder / "m.safetensors.index.json").read_text())
    seen, total = set(), 0
    with open_checkpoint(source) as checkpoint:
        for path in sorted(folder.glob("*.safetensors")):
            with package.safe_open(str(path), framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    values = opened.get_tensor(name)
                    assert index["weight_map"][name] == path.name
                    assert np.array_equal(values, checkpoint.float32(name))
                    seen.add(name)
                    total += values.nbytes
        assert seen == set(checkpoint.tensors) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("name", ["safetensors", "safetensors-f16", "gguf-f16", "transformers"])
def test_a_split_artifact_is_a_source_again(name: str, engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", "f16", **SIZES)
    folder = made(source, engine, name, tmp_path / "parts", 300_000)
    assert len(list(folder.glob("*-of-*"))) > 2
    back = made(folder, engine, "safetensors-f32", tmp_path / "back")
    differences = [item for item in compare(source, back) if item.kind != "equal"]
    assert differences == []


def test_other_formats_are_refused_before_anything_is_written(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", **SIZES)
    jobs = [
        ConversionJob(name, name, tmp_path / name, Split(100_000))
        for name in ("ggml-f16", "web-rwkv", "chatrwkv-cpu-fp32")
    ]
    for outcome in convert(source, engine, jobs):
        assert outcome.failure is not None
        assert "more than the 100000 of `split`" in outcome.failure
        assert "these can be split: gguf-f32" in outcome.failure
        assert "\n" not in outcome.failure
        assert not outcome.job.path.exists()
    fits = [ConversionJob(job.id, job.format, job.path, Split(10**8)) for job in jobs]
    assert all(outcome.failure is None for outcome in convert(source, engine, fits))


def test_too_many_files_are_refused(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=30, width=64, vocab=40)
    for name in ("safetensors", "gguf-f32"):
        (outcome,) = convert(source, engine, [ConversionJob(name, name, tmp_path / name, Split(1000))])
        assert outcome.failure is not None
        assert "at most 512 are written" in outcome.failure


@settings(max_examples=25, deadline=None)
@given(size=st.integers(20_000, 3_000_000), name=st.sampled_from(["gguf-f16", "safetensors"]))
def test_any_size(source: Path, engine: Path, tmp_path_factory: pytest.TempPathFactory, size: int, name: str) -> None:
    target = made(source, engine, name, tmp_path_factory.mktemp("any") / "x", size)
    if target.is_file():
        assert target.stat().st_size <= size
        return
    if name == "safetensors":
        with open_checkpoint(target) as found, open_checkpoint(source) as checkpoint:
            assert {info.name: info for info in found.tensors.values()} == dict(checkpoint.tensors)
    for path in target.iterdir():
        if path.stat().st_size > size and path.suffix != ".json":
            assert held(path) == 1


def held(path: Path) -> int:
    """How many tensors a single shard holds."""
    if path.suffix == ".gguf":
        return int(struct.unpack_from("<Q", path.read_bytes(), 8)[0])
    data = path.read_bytes()  # as a model of its own a later part is refused
    header = json.loads(data[8 : 8 + int(struct.unpack_from("<Q", data)[0])])
    return len(header.keys() - {"__metadata__"})


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Path:
    """A folder with engine/ and llama/, as in a sandbox's in/."""
    built = llama_cpp.prepared()
    folder = tmp_path_factory.mktemp("in")
    (folder / "engine").symlink_to(engine)
    (folder / "llama").symlink_to(built / "llama")
    return folder


@pytest.mark.parametrize("name", ["gguf-f16", "gguf-q4_0"])
def test_llama_cpp_runs_shards(name: str, source: Path, llama: Path, tmp_path: Path) -> None:
    whole = made(source, llama / "engine", name, tmp_path / "whole.gguf")
    folder = made(source, llama / "engine", name, tmp_path / "parts", whole.stat().st_size // 3)
    first = min(folder.iterdir())
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 256, 60)]
    logits = []
    for path in (whole, first):
        with Llama(llama / "llama", path, 1) as model:
            logits.append(model.eval(tokens))
    assert np.array_equal(logits[0], logits[1])
    asked = Questions(tuple(tokens), 32, ((1, 2, 3),), 4)
    with open_checkpoint(source) as checkpoint:
        reference = answer(Reference(checkpoint), asked)
    task = Task(folder, source, llama / "engine", None, FORMATS[name])
    figures = judge.compare(reference, run_artifact(task, asked))
    assert figures.logits < (0.1 if name == "gguf-f16" else 3)
    (folder / sorted(path.name for path in folder.iterdir())[1]).unlink()
    with pytest.raises(WorkerError, match=r"part 2 of .* is missing"):
        read_gguf_index(first)
    with pytest.raises(WorkerError):
        run_artifact(task, asked)
