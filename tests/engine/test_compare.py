"""`rwkvflow convert` and `compare` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import encoder
import pytest
from click.testing import CliRunner, Result

from rwkvflow.cli import cli
from rwkvflow.worker.compare import compare

SUPER = ("ggml-q4_k", "ggml-q5_k")  # of the matrices below only those with rows of 256 or a multiple of it


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())
    return folder / "lib" / "librwkv.so"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.make(tmp_path / "m.pth", "7", "bf16", layers=2, width=128, vocab=96)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=True)


def converted(source: Path, library: Path, name: str) -> Path:
    path = source.with_name(name)
    result = call("convert", source, path, "--format", name, "--library", library)
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    return path


def test_formats_are_compared_by_values(source: Path, library: Path) -> None:
    lossless = [converted(source, library, name) for name in ("ggml-f32", "gguf-f32", "safetensors-f32", "safetensors")]
    for path in lossless:
        assert {item.kind for item in compare(source, path)} == {"equal"}
    losses = {}
    for name in ("ggml-q8_0", "ggml-q5_1", "ggml-q5_0", "ggml-q4_1", "ggml-q4_0", "gguf-q8_0", "gguf-q4_0", *SUPER):
        found = {item.name: item for item in compare(source, converted(source, library, name))}
        assert {item.kind for item in found.values()} <= {"equal", "values"}
        matrix = found["blocks.1.ffn.value.weight"]
        assert matrix.dtypes == ("bf16", name.partition("-")[2])
        losses[name] = matrix.relative
    assert 0 < losses["ggml-q8_0"] < 0.01 < losses["ggml-q5_1"] < losses["ggml-q4_1"] < 0.12
    assert losses["ggml-q5_k"] < 0.97 * losses["ggml-q5_1"]
    assert losses["ggml-q4_k"] < 0.97 * losses["ggml-q4_1"]
    assert losses["ggml-q5_0"] < losses["ggml-q4_0"] < 0.15
    assert losses["gguf-q8_0"] == pytest.approx(losses["ggml-q8_0"], rel=0.01)


def test_what_is_missing_or_of_another_shape_is_told(source: Path, library: Path, tmp_path: Path) -> None:
    other = checkpoints.make(tmp_path / "n.pth", "7", "bf16", layers=1, width=128, vocab=64)
    result = call("compare", source, other, "--strict", "--json")
    assert result.exit_code == 1
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert rows["emb.weight"]["kind"] == "shape"
    assert rows["blocks.1.att.r_k"]["kind"] == "first"
    assert "blocks.0.att.r_k" not in rows
    text = call("compare", other, source).output
    assert "only in the second: bf16 [128]" in text
    assert "more (--all lists them)" in text
    assert call("compare", source, source, "--strict").output.endswith("tensors hold the same values, 0 differ\n")


def test_convert_does_not_overwrite_and_leaves_nothing_behind(source: Path, library: Path, tmp_path: Path) -> None:
    path = converted(source, library, "ggml-f16")
    before = path.read_bytes()
    again = call("convert", source, path, "--format", "ggml-f32", "--library", library)
    assert again.exit_code != 0
    assert path.read_bytes() == before
    for name in ("faster-rwkv-f16", "nonsense"):
        assert call("convert", source, tmp_path / "x", "--format", name, "--library", library).exit_code != 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ggml-f16", "m.pth"]
    assert call("convert", source, tmp_path, "--format", "ggml-f16", "--library", library).exit_code == 0
    assert (tmp_path / "m-FP16.bin").read_bytes() == before
