"""Conversions from end to end: bytes of rwkv.cpp's own tools, structure of every version, threads, failures, memory."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, ConversionOutcome, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import FileFormat
from rwkvflow.worker.formats.ggml.layout import KINDS
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.model.weight_types import BLOCKS
from rwkvflow.worker.protocol import parse
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.read.rawfile import RawFile
from tests.engine import encoder
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "convert.tsv"
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder with the quantizers."""
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


def make(source: Path, engine: Path, out: Path, *formats: str, **options: Any) -> dict[str, ConversionOutcome]:
    """Convert to these formats, each a file of its name in `out`."""
    jobs = [ConversionJob(f"id of {name}", name, out / name) for name in formats]
    outcomes = convert(source, engine, jobs, **options)
    assert [outcome.job for outcome in outcomes] == jobs
    return {outcome.job.format: outcome for outcome in outcomes}


def held(version: str) -> list[str]:
    """Formats of single files that hold a version."""
    return [name for name, item in FORMATS.items() if isinstance(item, FileFormat) and version in item.versions]


def checked(outcome: ConversionOutcome) -> tuple[int, str]:
    """(size, sha256) of what was written, compared with the file."""
    assert outcome.failure is None
    assert outcome.written is not None
    data = outcome.job.path.read_bytes()
    assert outcome.written.size == len(data)
    assert outcome.written.sha256 == hashlib.sha256(data).hexdigest()
    return len(data), outcome.written.sha256


# ---- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ["random-v4.pth", "random-v5.2.pth", "random-v7.pth"])
def test_bytes_of_rwkv_cpps_converter_and_quantizer(
    checkpoint: str, fixtures: Path, engine: Path, tmp_path: Path
) -> None:
    wanted = {}
    with (fixtures / "ggml-golden.tsv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            if row["checkpoint"] == checkpoint:
                name = "ggml-" + row["format"].lower().replace("fp", "f")
                name += "-from-f32" if row["quantized_from"] == "FP32" else ""
                wanted[name] = (int(row["bytes"]), row["sha256"])
    assert len(wanted) == 12
    made = make(fixtures / checkpoint, engine, tmp_path, *wanted)
    assert {name: checked(outcome) for name, outcome in made.items()} == wanted


def golden_checkpoint(path: Path, version: str) -> Path:
    """A checkpoint whose values come from SHAKE-256 of the names: the same with every numpy."""
    entries = []
    for name, shape in checkpoints.shapes(version, layers=2, width=64, vocab=96, head_size=32).items():
        count = int(np.prod(shape))
        bits = np.frombuffer(hashlib.shake_256(f"{version} {name}".encode()).digest(2 * count), "<i2")
        entries.append(checkpoints.array_entry(name, (bits.astype("<f4") / 8192).reshape(shape), "bf16"))
    checkpoints.write_pth(path, entries)
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_of_every_version_and_format_stay(version: str, engine: Path, tmp_path: Path) -> None:
    """Written by RWKVFLOW_UPDATE_GOLDEN=1, and from then on the same on every machine."""
    made = make(golden_checkpoint(tmp_path / "x.pth", version), engine, tmp_path, *held(version))
    rows = {(version, name): (str(size), sha) for name, (size, sha) in ((n, checked(o)) for n, o in made.items())}
    old = read_golden()
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        old = {key: value for key, value in old.items() if key[0] != version} | rows
        lines = ["version\tformat\tbytes\tsha256", *("\t".join((*key, *old[key])) for key in sorted(old))]
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert {key: value for key, value in old.items() if key[0] == version} == rows


def read_golden() -> dict[tuple[str, str], tuple[str, str]]:
    if not GOLDEN.exists():
        return {}
    with GOLDEN.open(encoding="utf-8") as table:
        rows = csv.DictReader(table, delimiter="\t")
        return {(row["version"], row["format"]): (row["bytes"], row["sha256"]) for row in rows}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_threads_and_pieces_do_not_change_bytes(dtype: str, engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="6", dtype=dtype, width=128)
    seen = set()
    for threads, piece in itertools.product((1, 4), (1, 5000, 1 << 20)):
        made = make(source, engine, tmp_path / f"{threads}-{piece}", *held("6"), threads=threads, piece=piece)
        seen.add(tuple(checked(outcome) for outcome in made.values()))
    assert len(seen) == 1


def test_one_format_gives_what_all_together_give(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "x.safetensors", version="7")
    together = make(source, engine, tmp_path / "together", *held("7"))
    for name, outcome in together.items():
        assert checked(make(source, engine, tmp_path / "alone", name)[name]) == checked(outcome)


# ---- structure ------------------------------------------------------------------------------------------------


def read_ggml(path: Path) -> tuple[tuple[int, ...], dict[str, tuple[int, tuple[int, ...], bytes]]]:
    """Header and tensors (type, shape in PyTorch's order, data) of rwkv.cpp's file."""
    data, at, tensors = path.read_bytes(), 24, {}
    while at < len(data):
        dims, length, kind = struct.unpack_from("<3i", data, at)
        shape = struct.unpack_from(f"<{dims}i", data, at + 12)[::-1]
        at += 12 + 4 * dims
        name = data[at : at + length].decode()
        at += length
        values, size = BLOCKS[kind]
        nbytes = int(np.prod(shape, dtype=np.int64)) // values * size
        tensors[name] = (kind, shape, data[at : at + nbytes])
        at += nbytes
    assert at == len(data)
    return struct.unpack_from("<6i", data), tensors


def expected_tensors(version: str, source: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """What rwkv.cpp's converter makes of float32 tensors, written independently of the format."""
    for name, value in source.items():
        last = name.rsplit(".", 1)[-1]
        x = value.squeeze() if ".time_" in name else value
        if version == "7" and ".att.x_" in name:
            if name.endswith("x_r"):
                stem = name[: -len("x_r")]
                yield stem + "x_rwkvag", np.concatenate([source[f"{stem}x_{k}"] for k in "rwkvag"], axis=0)
            continue
        if version == "7" and ".att." in name and len(last) == 2 and last[0] in "wavg" and last[1] in "12":
            x = x.T
        if version == "6":
            if last in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
                x = x.T
            elif last == "time_maa_w2":
                x = x.transpose(0, 2, 1)
            elif last == "time_decay":
                x = x.reshape(source[name.replace("time_decay", "time_faaaa")].shape[0], -1, 1)
        with np.errstate(over="ignore"):
            wide = x.astype(np.float64)
            if last == "time_decay" and version == "4":
                x = -np.exp(wide)
            elif last == "time_decay" and version.startswith("5"):
                x = np.exp(-np.exp(wide))
                x = x.reshape(-1, 1, 1) if version == "5.0" else x[..., None]
            elif last == "time_first" and version.startswith("5"):
                x = np.exp(wide).reshape(-1, 1, 1)
        yield name, x[..., None] if last == "time_faaaa" else x


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_structure_of_every_version(version: str, suffix: str, engine: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"layers": 3, "width": 128, "vocab": 64}
    source = checkpoints.make(tmp_path / f"x{suffix}", version=version, dtype="f32", seed=3, **sizes)
    shapes = checkpoints.shapes(version, **sizes)
    values = {
        name: np.concatenate(list(checkpoints.values(version, name, shape, 3))).reshape(shape)
        for name, shape in shapes.items()
    }
    make(source, engine, tmp_path, "ggml-f32", "ggml-f16", "ggml-q8_0")
    expected = dict(expected_tensors(version, values))
    for name in ("ggml-f32", "ggml-f16", "ggml-q8_0"):
        header, found = read_ggml(tmp_path / name)
        assert header == (0x67676D66, 101, 64, 128, 3, KINDS[name.removeprefix("ggml-")])
        assert list(found) == list(expected)
        for key, (kind, shape, data) in found.items():
            assert shape == expected[key].shape, key
            close = {0: 2e-7, 1: 1e-3, 9: 2e-2}[kind]
            np.testing.assert_allclose(decode(kind, data), expected[key].ravel(), rtol=close, atol=close / 10)


def decode(kind: int, data: bytes) -> Array:
    if kind in (0, 1):
        return np.frombuffer(data, "<f4" if kind == 0 else "<f2").astype(np.float32)
    blocks = np.frombuffer(data, np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    values: Array = (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).ravel()
    return values


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_safetensors_holds_every_tensor_bit_for_bit(dtype: str, engine: Path, tmp_path: Path) -> None:
    import safetensors

    source = checkpoints.make(tmp_path / "x.pth", version="7", dtype=dtype)
    (outcome,) = make(source, engine, tmp_path, "safetensors", piece=2000).values()
    checked(outcome)
    read = dict(safetensors.deserialize(outcome.job.path.read_bytes()))  # type: ignore[no-untyped-call]
    entries = {entry.name: entry for entry in checkpoints.entries("7", dtype)}
    assert set(read) == set(entries)
    for name, entry in entries.items():
        assert read[name]["dtype"] == dtype.upper()
        assert tuple(read[name]["shape"]) == entry.shape
        assert bytes(read[name]["data"]) == b"".join(entry.data())


def test_mixed_types_and_views_are_read_back(engine: Path, tmp_path: Path) -> None:
    """f64 and f32 among bf16, in an order that makes the file's pieces arrive out of order."""
    import safetensors

    entries = [
        checkpoints.array_entry(entry.name, np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape), dtype)
        for entry, dtype in zip(checkpoints.entries("4", "f32"), itertools.cycle(["bf16", "f64", "f32"]), strict=False)
    ]
    checkpoints.write_safetensors(tmp_path / "x.safetensors", entries)
    made = make(tmp_path / "x.safetensors", engine, tmp_path, "safetensors", "ggml-f32", piece=3000)
    for outcome in made.values():
        checked(outcome)
    read = dict(safetensors.deserialize(made["safetensors"].job.path.read_bytes()))  # type: ignore[no-untyped-call]
    for entry in entries:
        assert bytes(read[entry.name]["data"]) == b"".join(entry.data())
    _, tensors = read_ggml(tmp_path / "ggml-f32")
    assert all(kind == 0 for kind, _, _ in tensors.values())


# ---- what goes wrong ------------------------------------------------------------------------------------------


def damaged(path: Path, tensor: str, value: float) -> Path:
    """A version 4 checkpoint with one odd value."""
    entries = []
    for entry in checkpoints.entries("4", "f32"):
        values = np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape).copy()
        if entry.name == tensor:
            values.flat[5] = value
        entries.append(checkpoints.array_entry(entry.name, values))
    checkpoints.write_pth(path, entries)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_warned_of_and_not_quantized(value: float, engine: Path, tmp_path: Path) -> None:
    tensor = "blocks.1.att.key.weight"
    source = damaged(tmp_path / "x.pth", tensor, value)
    made = make(source, engine, tmp_path, "ggml-f32", "ggml-q5_1", "safetensors", "ggml-q8_0-from-f32")
    for name in ("ggml-f32", "safetensors"):
        checked(made[name])
        assert f"holds 1 values that are NaN or infinite, in {tensor}" in "\n".join(made[name].warnings)
    what = "a NaN" if value != value else "an infinity"
    assert f"ggml-f32: {what} in the checkpoint and in the artifact: {tensor}" in made["ggml-f32"].warnings
    for name in ("ggml-q5_1", "ggml-q8_0-from-f32"):
        assert made[name].failure == f"{tensor} holds {what}, which {name} cannot hold"
        assert not made[name].job.path.exists()


def test_values_too_large_for_f16(engine: Path, tmp_path: Path) -> None:
    tensor = "blocks.0.ffn.key.weight"
    source = damaged(tmp_path / "x.pth", tensor, 70000.0)
    made = make(source, engine, tmp_path, "ggml-f16", "ggml-q4_0", "ggml-q4_0-from-f32")
    checked(made["ggml-f16"])
    assert made["ggml-f16"].warnings == [f"ggml-f16: too large for F16, infinite in the artifact: {tensor}"]
    assert f"{tensor} holds a value too large for its 16-bit scales" in str(made["ggml-q4_0"].failure)
    checked(made["ggml-q4_0-from-f32"])
    assert made["ggml-q4_0-from-f32"].warnings == []


def test_a_full_disk_fails_every_job_and_leaves_nothing(engine: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    source = checkpoints.make(tmp_path / "x.pth", version="4")
    out = tmp_path / "out"
    out.mkdir()
    (out / "ggml-f32").symlink_to("/dev/full")
    made = make(source, engine, out, "ggml-f32", "ggml-f16", "ggml-q8_0", piece=1000)
    assert "the disk is full" in str(made["ggml-f32"].failure)
    for outcome in made.values():
        if outcome.failure:
            assert "the disk is full" in outcome.failure
            assert not outcome.job.path.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="4")
    size = {name: len((make(source, engine, tmp_path, name)[name].job.path).read_bytes()) for name in ("ggml-f32",)}
    real = os.statvfs(tmp_path)
    small = os.statvfs_result([1, 1, *list(real)[2:4], size["ggml-f32"] - 1, *list(real)[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(WorkerError, match=r"the artifacts need .* MB, and .* MB are free"):
        make(source, engine, tmp_path / "out", "ggml-f32")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_job_that_cannot_be_done_does_not_stop_the_others(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="4")
    (tmp_path / "ggml-f16").mkdir()  # a folder where the file should be
    made = make(source, engine, tmp_path, "ggml-q4_O", "ggml-f16", "ggml-q4_0")
    assert "unknown format 'ggml-q4_O'" in str(made["ggml-q4_O"].failure)
    assert "Is a directory" in str(made["ggml-f16"].failure)
    checked(made["ggml-q4_0"])


def test_a_checkpoint_cut_short_while_it_is_read(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="4", layers=4)
    out = tmp_path / "out"

    def cut(done: int, total: int, label: str) -> None:
        os.truncate(source, 100_000)

    with pytest.raises(WorkerError, match="shorter while it was read"):
        make(source, engine, out, "ggml-f32", "safetensors", piece=1000, on_progress=cut)
    assert list(out.iterdir()) == []


def test_a_library_without_the_functions_is_refused(tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="4")
    with pytest.raises(WorkerError, match=r"no librwkv\.so, librwkv\.dylib or librwkv\.dll in engine/lib"):
        make(source, tmp_path / "engine", tmp_path, "ggml-f32")
    (tmp_path / "engine" / "lib").mkdir(parents=True)
    (tmp_path / "engine" / "lib" / "librwkv.so").write_bytes(b"not a library")
    with pytest.raises(WorkerError, match=r"librwkv\.so cannot be used to convert"):
        make(source, tmp_path / "engine", tmp_path, "ggml-f32")


# ---- the worker task ------------------------------------------------------------------------------------------


def test_the_worker_task(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    checkpoints.make(tmp_path / "in" / "checkpoint.pth", version="5.2").rename(tmp_path / "in" / "checkpoint")
    (tmp_path / "in" / "engine").symlink_to(engine)
    formats = ["ggml-q5_1", "safetensors", "nonsense"]
    request = {
        "task": "convert",
        "params": {},
        "jobs": [{"id": f, "params": {"format": f}, "outputs": {"artifact": f"out/{f}/x"}} for f in formats],
    }
    (tmp_path / "in" / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow.worker", "in/request.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    messages = [message for line in done.stdout.splitlines() if (message := parse(line))]
    outputs = {m["output"]["job"]: m["output"] for m in messages if "output" in m}
    assert set(outputs) == {"ggml-q5_1", "safetensors"}
    for name, output in outputs.items():
        data = (tmp_path / "out" / name / "x").read_bytes()
        assert output == {
            "job": name,
            "name": "artifact",
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
    (failed,) = [m["failed"] for m in messages if "failed" in m]
    assert failed["job"] == "nonsense"
    last = [m["progress"] for m in messages if "progress" in m][-1]
    assert last["done"] == last["total"] > 0
    assert last["unit"] == "B"


# ---- memory ---------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from rwkvflow.worker.conversion.convert import ConversionJob, convert
source, engine, out, *formats = sys.argv[1:]
for outcome in convert(Path(source), Path(engine), [ConversionJob(f, f, Path(out) / f) for f in formats], threads=2):
    assert outcome.written, outcome
status = Path("/proc/self/status")
if status.exists():  # unlike ru_maxrss, this knows nothing of the process that started us
    print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_many_formats_take_one_read_of_the_checkpoint(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoints.make(tmp_path / "x.pth", version="7", layers=2, width=256, vocab=4096)
    read = 0
    original = RawFile.into

    def into(self: RawFile, buffer: memoryview, offset: int) -> None:
        nonlocal read
        read += len(buffer) if self.path == source else 0  # headers of what was made are read as well
        original(self, buffer, offset)

    monkeypatch.setattr(RawFile, "into", into)
    with open_checkpoint(source) as checkpoint:
        index, tensors = read, sum(info.nbytes for info in checkpoint.tensors.values())
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("an artifact was read back to be hashed"))
    made = make(source, engine, tmp_path / "out", *(n for n in held("7") if n.startswith(("ggml-", "gguf-"))))
    assert len(made) >= 20
    assert all(outcome.failure is None for outcome in made.values())
    assert read == index + index + tensors


def test_memory_does_not_grow_with_the_model(engine: Path, tmp_path: Path) -> None:
    def peak(source: Path, *formats: str) -> int:
        """Maximum resident set size in KiB."""
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source), str(engine), str(tmp_path / "out"), *formats],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    small = checkpoints.make(tmp_path / "small.pth", version="4", width=768, layers=1, vocab=8192)
    large = checkpoints.make(tmp_path / "large.pth", version="4", width=768, layers=6, vocab=40960)
    assert large.stat().st_size > 4 * small.stat().st_size
    for formats in (("ggml-f16",), ("ggml-f32", "ggml-f16", "ggml-q5_1", "ggml-q4_0-from-f32", "safetensors")):
        before, after = peak(small, *formats), peak(large, *formats)
        assert after < before + 24 * 1024, formats
        assert after < 300 * 1024, formats
