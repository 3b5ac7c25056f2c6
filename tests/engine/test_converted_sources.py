"""Converted files as sources: what comes back is what went in, bit for bit where the file still has it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import Task
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from tests.engine import encoder
from tests.helpers import checkpoints


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


def made(source: Path, engine: Path, name: str, out: str) -> Path:
    path = source.with_name(out)
    (outcome,) = convert(source, engine, [ConversionJob("x", name, path)])
    assert outcome.failure is None
    return path


def random_checkpoint(path: Path, version: str, dtype: str) -> Path:
    return checkpoints.make(path, version, dtype, layers=8 if version == "6" else 2, width=128, vocab=96)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("version", "name"),
    [*((version, "ggml-f32") for version in VERSIONS), ("6", "gguf-f32"), ("7", "gguf-f32")],
)
def test_f32_files_give_the_checkpoint_back(name: str, version: str, dtype: str, engine: Path, tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "m.pth", version, dtype)
    path = made(source, engine, name, "converted")
    with open_checkpoint(source) as before, open_checkpoint(path) as after:
        assert architecture_of(after.tensors).version == version
        assert set(after.tensors) == set(before.tensors)
        for tensor, info in before.tensors.items():
            assert (after.tensors[tensor].shape, after.tensors[tensor].dtype) == (info.shape, "f32"), tensor
            ours, theirs = before.float32(tensor), after.float32(tensor)
            lossy = version < "6" and tensor.endswith(("time_decay", "time_first")) and dtype == "f32"
            if lossy:
                assert np.abs(ours - theirs).max() < 1e-2
            else:
                assert np.array_equal(ours, theirs), tensor
            assert np.array_equal(after.read(tensor, 0, 1), theirs[:1])
    again = made(path, engine, name, "again")
    assert again.read_bytes() == path.read_bytes()
    assert made(path, engine, "ggml-f32", "bin").read_bytes() == made(source, engine, "ggml-f32", "b").read_bytes()


@pytest.mark.parametrize("name", ["ggml-f16", "gguf-f16", "gguf-bf16"])
def test_files_of_16_bits_give_their_values_back(name: str, engine: Path, tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "m.pth", "6", "bf16" if "bf16" in name else "f16")
    path = made(source, engine, name, "converted")
    with open_checkpoint(source) as before, open_checkpoint(path) as after:
        assert after.tensors["head.weight"].dtype == before.tensors["head.weight"].dtype
        for tensor in before.tensors:
            difference = np.abs(before.float32(tensor) - after.float32(tensor)).max()
            # what gguf-f16 halves may become subnormal
            assert difference <= (1e-7 if tensor.startswith(("blocks.6.", "blocks.7.")) else 0)


def test_quantized_and_foreign_files_are_refused(engine: Path, tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "m.pth", "7", "f16")
    for name in ("ggml-q5_1", "gguf-q8_0"):
        with pytest.raises(WorkerError, match=r"is quantized \(q\d_\d\); convert from the F32"):
            open_checkpoint(made(source, engine, name, name))
    path = made(source, engine, "gguf-f16", "gguf-f16")
    other = path.read_bytes().replace(b"rwkv7", b"llama")
    path.write_bytes(other)
    with pytest.raises(WorkerError, match="a GGUF of 'llama'; only rwkv6 and rwkv7 are known"):
        open_checkpoint(path)


def test_values_at_the_ends_of_their_range(engine: Path, tmp_path: Path) -> None:
    """exp(-exp(x)) is 0 and 1 there; the file converts to itself all the same."""
    entries = [
        checkpoints.array_entry(entry.name, np.array([-60.0, 60.0], np.float32))
        if entry.name.endswith("time_decay")
        else entry
        for entry in checkpoints.entries("5.0", "f32", layers=2, width=128, vocab=96)
    ]
    checkpoints.write_pth(tmp_path / "m.pth", entries)
    path = made(tmp_path / "m.pth", engine, "ggml-f32", "converted")
    with open_checkpoint(path) as found:
        assert np.isfinite(found.float32("blocks.0.att.time_decay")).all()
    assert made(path, engine, "ggml-f32", "again").read_bytes() == path.read_bytes()


def test_rwkv_cpps_own_files_convert_to_themselves(engine: Path, tmp_path: Path) -> None:
    fixtures = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"
    found = sorted(fixtures.glob("tiny-rwkv-*-FP32.bin"))
    if not found:
        pytest.skip("no fixtures beside the checkout")
    for path in found:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        again = made(tmp_path / path.name, engine, "ggml-f32", path.name + ".again").read_bytes()
        # version 100 of the file's format became 101, and nothing else
        assert again[:4] + struct.pack("<i", 101) + again[8:] == again
        assert again[8:] == path.read_bytes()[8:]


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_hugging_face_folders_convert_to_the_same_files(version: str, engine: Path, tmp_path: Path) -> None:
    """.pth to folder to ggml-f32, ggml-f16 and safetensors: byte for byte what the .pth itself gives."""
    source = random_checkpoint(tmp_path / "m.pth", version, "bf16")
    folder = made(source, engine, "transformers", "folder")
    for name in ("ggml-f32", "ggml-f16", "ggml-q5_1", "safetensors"):
        assert made(folder, engine, name, "a").read_bytes() == made(source, engine, name, "b").read_bytes()


def test_a_lora_and_states_are_the_same_bytes_for_any_threads_and_pieces(engine: Path, tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "m.pth", "7", "bf16")
    rng = np.random.default_rng(0)
    entries = []
    for layer in range(2):
        for name, rows, columns in (("att.key", 128, 128), ("ffn.key", 512, 128), ("ffn.value", 128, 512)):
            for half, shape in (("A", (8, columns)), ("B", (rows, 8))):
                values = rng.standard_normal(shape, np.float32) * np.float32(0.1)
                entries.append(checkpoints.array_entry(f"blocks.{layer}.{name}.lora_{half}", values, "bf16"))
        state = rng.standard_normal((2, 64, 64), np.float32)
        entries.append(checkpoints.array_entry(f"blocks.{layer}.att.time_state", state, "f32"))
    checkpoints.write_pth(tmp_path / "lora.pth", entries)
    origin = Origin(source, tmp_path / "lora.pth", 16)
    found = set()
    for threads, piece in ((1, 1 << 20), (3, 4096), (8, 20_000)):
        jobs = [ConversionJob(name, name, tmp_path / name) for name in ("safetensors", "ggml-f16", "ggml-q4_0")]
        outcomes = convert(origin, engine, jobs, threads=threads, piece=piece)
        assert [outcome.failure for outcome in outcomes] == [None] * 3
        found.add(tuple(job.path.read_bytes() for job in jobs))
        left = "has no place for initial states: those of 2 layers are left out"
        assert [outcome.warnings for outcome in outcomes] == [[], [f"ggml-f16 {left}"], [f"ggml-q4_0 {left}"]]
    assert len(found) == 1
    with open_checkpoint(origin) as wanted, open_checkpoint(tmp_path / "safetensors") as artifact:
        assert set(wanted.tensors) == set(artifact.tensors)
        for name in wanted.tensors:
            assert wanted.read(name).tobytes() == artifact.read(name).tobytes()
    task = Task(Path(), Origin(source, tmp_path / "lora.pth", 16), engine, None, FORMATS["ggml-f16"])
    with task.open_source() as wanted:
        assert made_bytes(wanted, tmp_path, engine) == (tmp_path / "ggml-f16").read_bytes()


def made_bytes(checkpoint: Checkpoint, folder: Path, engine: Path) -> bytes:
    """ggml-f16 of an open checkpoint's tensors, by way of a plain .pth of them."""
    entries = [
        checkpoints.array_entry(name, checkpoint.read(name), info.dtype) for name, info in checkpoint.tensors.items()
    ]
    checkpoints.write_pth(folder / "plain.pth", entries)
    return made(folder / "plain.pth", engine, "ggml-f16", "plain").read_bytes()
