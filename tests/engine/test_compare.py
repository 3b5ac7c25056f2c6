"""`rwkvflow convert` and `compare` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rwkvflow.cli import cli
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.maps import web_rwkv
from rwkvflow.worker.read.compare import compare
from rwkvflow.worker.read.open import open_checkpoint
from tests.engine import encoder
from tests.helpers import checkpoints

SUPER = ("ggml-q4_k", "ggml-q5_k")  # of the matrices below only those with rows of 256 or a multiple of it


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())
    return folder / "lib" / "librwkv.so"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.make(tmp_path / "m.pth", "7", "bf16", layers=2, width=128, vocab=96)


def call(*arguments: object) -> Result:
    more = ["--no-check"] if arguments[0] == "convert" else []  # the encoder's library runs nothing
    return CliRunner().invoke(cli, [*map(str, arguments), *more], catch_exceptions=True)


def converted(source: Path, library: Path, name: str) -> Path:
    path = source.with_name(name)
    result = call("convert", source, path, "--format", name, "--library", library)
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    return path


@pytest.mark.parametrize("version", ["4", "5.1", "5.2", "6", "7"])
def test_a_file_of_web_rwkv_is_compared_and_described_under_the_authors_names(
    tmp_path: Path, library: Path, version: str
) -> None:
    """Its low-rank matrices are transposed, bonuses and mixes have other names, and 5.1 holds a head of each value."""
    source = checkpoints.make(tmp_path / "m.pth", version, "bf16", layers=2, width=128, vocab=96)
    file = converted(source, library, "web-rwkv")
    found = {item.name: item for item in compare(source, file)}
    assert {item.kind for item in found.values()} <= {"equal", "values"}
    assert all(item.relative < 1e-3 for item in found.values())
    told = json.loads(call_inspect(file))
    assert (told["architecture"]["version"], told["problem"]) == ({"5.1": "5.2"}.get(version, version), None)
    assert {item.kind for item in compare(file, source)} <= {"equal", "values"}


#: What a format may be off by, of the size of a tensor: fp16, and blocks with 256 or 16 levels.
PACKED = {"prefab-f16": 1e-3, "prefab-int8": 0.02, "prefab-nf4": 0.2, "faster-rwkv-f16": 2e-3, "faster-rwkv-f32": 1e-6}
PACKED |= {
    "chatrwkv-cpu-fp32": 1e-6,
    "chatrwkv-cpu-bf16": 5e-3,
    "chatrwkv-cuda-fp16": 2e-3,
    "chatrwkv-cuda-fp16i8": 0.02,
}


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
@pytest.mark.parametrize("name", PACKED)
def test_what_other_runtimes_load_is_compared_with_the_checkpoint(
    tmp_path: Path, library: Path, name: str, version: str
) -> None:
    """All of it, under the author's names: halved, turned, in blocks, with decays worked out, ln0 in the embedding."""
    if version not in FORMATS[name].versions:
        pytest.skip("the format cannot hold this version")
    source = checkpoints.make(tmp_path / "m.pth", version, "bf16", layers=8, width=128, vocab=99)
    file = converted(source, library, name)
    for one, other in ((source, file), (file, source)):
        found = {item.name: item for item in compare(one, other)}
        assert {item.kind for item in found.values()} <= {"equal", "values"}
        assert max(item.relative for item in found.values()) < PACKED[name]
        equal = sum(item.kind == "equal" for item in found.values())
        assert equal > len(found) / 3, "what is stored as it was is as it was"
    with open_checkpoint(source) as checkpoint:
        folded = not name.startswith("prefab") and version != "7"
        norm = {"blocks.0.ln0.weight", "blocks.0.ln0.bias"} if folded else set()
        assert {web_rwkv.name_in_file(item) for item in found} == {
            web_rwkv.name_in_file(item) for item in set(checkpoint.tensors) - norm
        }
    assert {item.kind for item in compare(file, file)} == {"equal"}


@pytest.mark.parametrize("name", ["prefab-nf4", "prefab-int8", "faster-rwkv-f16"])
def test_a_few_other_bytes_in_such_a_file_are_found(tmp_path: Path, library: Path, name: str) -> None:
    version = "7" if name.startswith("prefab") else "5.2"
    one = checkpoints.make(tmp_path / "one.pth", version, "bf16", layers=2, width=128, vocab=96)
    file = converted(one, library, name)
    before = list(compare(one, file))
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        data = content.read(64)
        content.seek(file.stat().st_size // 2)
        content.write(bytes(255 - byte for byte in data))
    (changed,) = set(compare(one, file)) - set(before)
    assert changed.relative > max(item.relative for item in before if item.name == changed.name)


def test_a_gguf_tells_its_version_by_its_architecture(source: Path, library: Path) -> None:
    told = json.loads(call_inspect(converted(source, library, "gguf-f16")))
    assert (told["architecture"]["version"], told["problem"]) == ("7", None)


def call_inspect(path: Path) -> str:
    result = CliRunner().invoke(cli, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return result.output


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


def test_force_replaces_a_file_and_leaves_the_folder_around_it(source: Path, library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    (folder / "m-FP16.bin").write_bytes(b"old")
    words = ("convert", source, folder, "--format", "ggml-f16", "--library", library)
    assert "say --force" in str(call(*words).exception)
    assert (folder / "m-FP16.bin").read_bytes() == b"old"
    assert call(*words, "--force").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["m-FP16.bin", "thesis.txt"]
    assert (folder / "m-FP16.bin").stat().st_size > 3


def test_convert_splits_and_takes_what_is_split(source: Path, library: Path, tmp_path: Path) -> None:
    def split(target: Path, name: str, *more: object) -> Result:
        return call("convert", source, target, "--format", name, "--library", library, *more)

    result = split(tmp_path, "gguf-f16", "--split", "300kB")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "m-F16-gguf"
    shards = sorted(folder.glob("*.gguf"))
    assert f"{folder} " in result.output
    assert "sha256" not in result.output
    assert shards[0].name == f"m-F16-00001-of-{len(shards):05d}.gguf"
    assert all(shard.stat().st_size <= 300_000 for shard in shards)
    assert "exists already" in str(split(tmp_path, "gguf-f16", "--split", "300kB").exception)
    named = tmp_path / "mine.safetensors"
    assert split(named, "safetensors-f32", "--split", "0.5 MB").exit_code == 0
    assert (named / "mine.safetensors.index.json").is_file()
    assert split(named, "safetensors-f32", "--split", "0.5 MB", "--force").exit_code == 0
    (named / "notes.txt").write_text("mine")
    assert "notes.txt" in str(split(named, "safetensors-f32", "--split", "0.5 MB", "--force").exception)
    (named / "notes.txt").unlink()
    assert split(tmp_path / "whole", "safetensors", "--split", "1GB").exit_code == 0
    assert (tmp_path / "whole").is_file()
    for path in (folder, shards[0], named, named / "mine.safetensors.index.json"):
        told = call("inspect", path)
        assert told.exit_code == 0
        count = len(shards) if path in (folder, shards[0]) else len(list(named.glob("*.safetensors")))
        assert f" in {count} files, " in told.output
        if path not in (folder, shards[0]):
            assert call("compare", tmp_path / "whole", path, "--strict").exit_code == 0
        back = tmp_path / f"{path.name}-back"
        assert call("convert", path, back, "--format", "ggml-f32", "--library", library).exit_code == 0
        back.unlink()
    refused = split(tmp_path / "x", "ggml-f16", "--split", "100kB")
    assert "these can be split" in str(refused.exception)
    for words, wrong in (("a size such as 5GB", "5"), ("files of no bytes", "0GB")):
        assert words in str(split(tmp_path / "x", "ggml-f16", "--split", wrong).exception)
    assert not (tmp_path / "x").exists()


def test_convert_takes_strategies(source: Path, library: Path, tmp_path: Path) -> None:
    old = checkpoints.make(tmp_path / "six.pth", "6", "bf16", layers=2, width=128, vocab=96)
    options = ("--library", library, "--format", "chatrwkv", "--strategy")
    result = call("convert", old, tmp_path, *options, "cuda fp16i8 *1->cpu fp32")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "six-cuda-fp16i8-x1-cpu-fp32.pth").is_file()
    refused = call("convert", source, tmp_path, *options, "cuda fp16i8").exception
    assert "is version 7, which chatrwkv-cuda-fp16i8 cannot hold" in str(refused)
    assert "'gpu' is no device" in str(call("convert", source, tmp_path, *options, "gpu fp16").exception)
    plain = call("convert", source, tmp_path, *options[:3], "chatrwkv")
    assert "chatrwkv needs a strategy" in str(plain.exception)
    other = call("convert", source, tmp_path, "--format", "ggml-f16", "--strategy", "cpu fp32")
    assert "only chatrwkv takes a strategy" in str(other.exception)
