"""`rwkvflow imatrix`: one sha256 with any kernels and any number of threads, and files that it leads to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rwkvflow.cli import cli
from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.importance import Gatherer, chunks_of
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.open import open_checkpoint
from tests.engine import encoder, librwkv
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
TOKENS = [(7 * k * k + k) % 96 for k in range(150)]
PROGRAM = """
import hashlib, sys
from rwkvflow.engine.binding import Model
from rwkvflow.engine.importance import Gatherer
with Model(sys.argv[1], sys.argv[2], int(sys.argv[3])) as model:
    found = Gatherer(model)
    for at in (0, 70):
        found.add(list(map(int, sys.argv[4].split(",")))[at : at + 70])
    print(hashlib.sha256(b"".join(k.encode() + v.tobytes() for k, v in found.sums().items())).hexdigest())
"""


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    sizes = {"layers": 2, "width": 128, "vocab": 96, "head_size": 32}
    return {version: checkpoints.make(root / f"{version}.pth", version, "f32", **sizes) for version in ("6", "7")}


@pytest.fixture(scope="module")
def files(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, out = tmp_path_factory.mktemp("files"), {}
    engine = encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())
    for version, source in sources.items():
        jobs = [
            ConversionJob(f"{version}-{name}", name, root / f"{version}-{name}") for name in ("ggml-f32", "gguf-q8_0")
        ]
        for outcome in convert(source, engine, jobs):
            assert outcome.failure is None
            out[outcome.job.id] = outcome.job.path
    return out


def test_the_bits_are_the_same_with_any_kernels_and_threads(
    request: pytest.FixtureRequest, files: dict[str, Path], library: Path
) -> None:
    tool = librwkv.with_zig(request.config) / "rwkv"
    for path in files.values():
        found = set()
        for kernels in librwkv.kernel_sets(tool):
            if librwkv.kernels_used(kernels, tool) != kernels:
                continue
            for threads in (1, 3):
                command: list[str | Path] = [sys.executable, "-c", PROGRAM, path, library, str(threads)]
                command.append(",".join(map(str, TOKENS)))
                env = {**os.environ, "RWKV_KERNELS": kernels}
                found.add(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout)
        assert len(found) == 1, path


def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    out: np.ndarray = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b
    return out


def test_sums_are_those_of_the_matrix_inputs(sources: dict[str, Path], files: dict[str, Path], library: Path) -> None:
    """Of the first layer's key matrix in version 7, whose input follows from the embedding alone."""
    with open_checkpoint(sources["7"]) as checkpoint:
        ours = {name: checkpoint.float32(name).astype(np.float64) for name in checkpoint.tensors if ".1." not in name}
    x = norm(ours["emb.weight"][TOKENS[:100]], ours["blocks.0.ln0.weight"], ours["blocks.0.ln0.bias"])
    x = norm(x, ours["blocks.0.ln1.weight"], ours["blocks.0.ln1.bias"])
    before = np.vstack([np.zeros((1, x.shape[1])), x[:-1]])
    wanted = ((x + (before - x) * ours["blocks.0.att.x_k"].reshape(-1)) ** 2).sum(0)
    with Model(files["7-ggml-f32"], library) as model:
        found = Gatherer(model)
        found.add(TOKENS[:100])
        sums = found.sums()
        assert np.allclose(sums["blocks.0.att.key.weight"], wanted, rtol=1e-4)
        assert set(sums) == {
            f"blocks.{layer}.{part}.weight"
            for layer in (0, 1)
            for part in ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
        }
        assert all((values > 0).any() for values in sums.values())
        found.add(TOKENS[:100])  # from a fresh state again, and added
        assert np.allclose(found.sums()["blocks.0.att.key.weight"], 2 * wanted, rtol=1e-4)
        with pytest.raises(EngineError, match="the vocabulary has 96"):
            found.add([96])
    with Model(files["6-ggml-f32"], library) as model:
        found = Gatherer(model)
        found.add(TOKENS)
        assert {"blocks.1.att.gate.weight", "blocks.1.ffn.receptance.weight"} <= set(found.sums())


def test_chunks_are_whole() -> None:
    assert [list(part) for part in chunks_of(range(10), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [list(part) for part in chunks_of(range(10), 3, 2)] == [[0, 1, 2], [3, 4, 5]]
    assert not list(chunks_of(range(3), 4))


def test_the_command_and_what_is_quantized_with_its_file(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKVFLOW_LIBRARY", str(library))
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))

    def call(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == code or (code and done.exception), (done.output, done.exception)
        return done.output + str(done.exception or "")

    source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=256, vocab=256, ffn=256)
    out = tmp_path / "m.gguf"
    options = ("-o", out, "--chunks", 2, "--chunk-size", 64)
    said = call("imatrix", source, *options)
    assert "6 matrices over 2 chunks of 64 tokens" in said
    first, found = out.read_bytes(), read_imatrix(out)
    assert (found.datasets, found.chunks, found.chunk_size) == (("calibration.txt",), 2, 64)
    assert "exists already" in call("imatrix", source, *options, code=1) or out.read_bytes() == first
    call("imatrix", source, *options, "--threads", 3, "--force")
    assert out.read_bytes() == first
    text = tmp_path / "short.txt"
    text.write_text("too short", encoding="utf-8")
    assert "fewer than a chunk" in call("imatrix", source, text, "-o", tmp_path / "no.gguf", code=2)

    with_it, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
    call("convert", source, with_it, "--format", "gguf-q4_k_m", "--imatrix", out, "--no-check")
    call("convert", source, without, "--format", "gguf-q4_k_m", "--no-check")
    index = read_gguf_index(with_it)
    assert index.metadata["quantize.imatrix.file"] == "m.gguf"
    assert index.metadata["quantize.imatrix.dataset"] == "calibration.txt"
    assert (index.metadata["quantize.imatrix.entries_count"], index.metadata["quantize.imatrix.chunks_count"]) == (6, 2)
    plain, differ = read_gguf_index(without), set()
    for name, tensor in index.tensors.items():
        data = with_it.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        other = plain.tensors[name]
        if data != without.read_bytes()[other.offset : other.offset + other.nbytes]:
            differ.add(name)
    assert differ == set(found.sums)
    assert "is not quantized with one" in call(
        "convert", source, tmp_path / "x.bin", "--format", "ggml-q4_0", "--imatrix", out, code=2
    )
    mixed = ("--format", "gguf-q4_k_m", "--no-check", "--tensor-type")
    call("convert", source, tmp_path / "mixed.gguf", *mixed, "time_mix_key=q6_k", "--tensor-type", "time_mix=q5_k")
    kinds = {name: tensor.type for name, tensor in read_gguf_index(tmp_path / "mixed.gguf").tensors.items()}
    assert kinds["blk.0.time_mix_key.weight"] == "q6_k"
    assert kinds["blk.0.time_mix_value.weight"] == "q5_k"
    assert kinds["blk.0.channel_mix_key.weight"] == "q4_k"
    assert "no type of a tensor" in call("convert", source, tmp_path / "n.gguf", *mixed, "time=q9", code=1)
    assert "is not REGEX=TYPE" in call("convert", source, tmp_path / "n.gguf", *mixed, "time", code=2)
    other_model = checkpoints.make(tmp_path / "o.pth", "7", layers=1, width=128, vocab=256)
    refused = call("convert", other_model, tmp_path / "x.gguf", "--format", "gguf-q4_0", "--imatrix", out, code=1)
    assert "an importance matrix of another one" in refused
    assert not (tmp_path / "x.gguf").exists()


def worker(folder: Path, request: dict[str, object]) -> None:
    (folder / "in" / "request.json").write_text(json.dumps(request), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rwkvflow.worker", "in/request.json"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tasks_of_a_recipe_make_what_the_commands_make(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sha256 by a worker as by the command; and the file quantized with it says so."""
    monkeypatch.setenv("RWKVFLOW_LIBRARY", str(library))
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=256, vocab=256, ffn=256)
    text = tmp_path / "mine.txt"
    text.write_text("The quick brown fox. " * 20, encoding="utf-8")
    words = ["imatrix", source, text, "-o", tmp_path / "m.gguf", "--chunks", 3, "--chunk-size", 64]
    assert CliRunner().invoke(cli, [str(word) for word in words]).exit_code == 0
    (tmp_path / "in" / "engine" / "lib").mkdir(parents=True)
    for name, target in (("checkpoint", source), ("text", text), ("engine/lib/librwkv.so", library)):
        (tmp_path / "in" / name).symlink_to(target)
    params = {"tokenizer": "bytes", "group_norm_eps": None, "text": "mine.txt", "chunks": 3, "chunk_size": 64}
    job = {"id": "imatrix", "params": {}, "outputs": {"imatrix": "out/imatrix"}}
    worker(tmp_path, {"task": "imatrix", "params": params, "jobs": [job]})
    assert (tmp_path / "out" / "imatrix").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "in" / "imatrix").symlink_to(tmp_path / "out" / "imatrix")
    job = {
        "id": "a",
        "params": {"format": "gguf-q4_k_m", "imatrix": "m-imatrix.gguf"},
        "outputs": {"artifact": "a.gguf"},
    }
    worker(tmp_path, {"task": "convert", "params": {}, "jobs": [job]})
    metadata = read_gguf_index(tmp_path / "a.gguf").metadata
    assert metadata["quantize.imatrix.file"] == "m-imatrix.gguf"
    assert metadata["quantize.imatrix.dataset"] == "mine.txt"
    assert metadata["quantize.imatrix.chunks_count"] == 3
