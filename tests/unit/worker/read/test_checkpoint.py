"""Reading checkpoints: every dtype, view and wrapper comes out bit for bit as it went in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.rounding import bf16_to_float32
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.checkpoint import NUMPY
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints
from tests.helpers.checkpoints import Entry, Pickle, array_entry

FILES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SUFFIXES = (".pth", ".safetensors")
WRITERS = {".pth": checkpoints.write_pth, ".safetensors": checkpoints.write_safetensors}


def raw_entry(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> Entry:
    size = int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize
    data = np.random.default_rng(seed).bytes(size)
    return Entry(name, dtype, shape, lambda: [data])


@FILES
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(checkpoints.STORAGES)), st.lists(st.integers(0, 5), max_size=4).map(tuple)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32 - 1),
    st.sampled_from(SUFFIXES),
)
def test_every_dtype_and_shape_comes_back(
    tmp_path: Path, kinds: list[tuple[str, tuple[int, ...]]], seed: int, suffix: str
) -> None:
    path = tmp_path / ("x" + suffix)
    entries = [raw_entry(f"t{i}.é", dtype, shape, seed + i) for i, (dtype, shape) in enumerate(kinds)]
    WRITERS[suffix](path, entries)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.kind == suffix[1:]
        assert list(checkpoint.tensors.values()) == [TensorInfo(e.name, e.dtype, e.shape) for e in entries]
        for entry in entries:
            (data,) = entry.data()
            values = checkpoint.read(entry.name)
            assert values.tobytes() == data
            assert values.shape == entry.shape
            assert values.dtype == np.dtype(NUMPY[entry.dtype])
            assert checkpoint.tensors[entry.name].nbytes == len(data)
            if entry.shape:
                middle = entry.shape[0] // 2
                assert checkpoint.read(entry.name, middle).tobytes() == values[middle:].tobytes()
                assert checkpoint.read(entry.name, 0, middle).tobytes() == values[:middle].tobytes()
        checkpoint.verify()


@FILES
@given(st.data())
def test_views_of_a_shared_storage(tmp_path: Path, data: st.DataObject) -> None:
    """Any strides and offset inside a storage, against numpy's as_strided."""
    storage = np.arange(data.draw(st.integers(1, 200)), dtype="<f4")
    views = []
    for _ in range(data.draw(st.integers(1, 4))):
        sizes, steps, room = [], [], len(storage)
        offset = data.draw(st.integers(0, room - 1))
        room -= offset + 1
        for _ in range(data.draw(st.integers(0, 3))):
            step = data.draw(st.integers(0, 12))
            size = data.draw(st.integers(1, 1 + (min(room // step, 6) if step else 3)))
            room -= (size - 1) * step
            sizes.append(size)
            steps.append(step)
        if int(np.prod(sizes)) <= len(storage):
            views.append((offset, tuple(sizes), tuple(steps)))
    if not views:
        return
    pickle = Pickle().op(b"}(")
    for index, (offset, shape, stride) in enumerate(views):
        pickle.text(f"v{index}").tensor("FloatStorage", "0", len(storage), shape, stride, offset)
    write_parts(tmp_path / "v.pth", pickle.op(b"u").done(), {"0": storage.tobytes()})
    with open_checkpoint(tmp_path / "v.pth") as checkpoint:
        for index, (offset, shape, stride) in enumerate(views):
            expected = np.lib.stride_tricks.as_strided(storage[offset:], shape, [4 * step for step in stride])
            got = checkpoint.read(f"v{index}")
            assert got.flags.c_contiguous
            assert np.array_equal(got, expected)
            if shape:
                assert np.array_equal(checkpoint.float32(f"v{index}", shape[0] - 1, 1), expected[-1:])


def write_parts(path: Path, pickle: bytes, storages: dict[str, bytes], **more: bytes) -> Path:
    records = [("x/data.pkl", len(pickle), [pickle])]
    records += [(f"x/{name}", len(data), [data]) for name, data in more.items()]
    records += [(f"x/data/{key}", len(data), [data]) for key, data in storages.items()]
    checkpoints.write_zip(path, records)
    return path


@given(st.integers(0, 0xFFFF))
@settings(max_examples=500)
def test_bfloat16_is_the_upper_half_of_float32(bits: int) -> None:
    got = bf16_to_float32(np.array([bits], "<u2")).view("<u4")
    assert got[0] == bits << 16


def test_float32_of_each_dtype(tmp_path: Path) -> None:
    values = np.array([0.0, -1.5, 3.25, 120.0], np.float32)
    for dtype in ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8"):
        exact = np.trunc(values) if dtype[0] == "i" else values
        checkpoints.write_pth(tmp_path / "x.pth", [array_entry("a", exact, dtype)])
        with open_checkpoint(tmp_path / "x.pth") as checkpoint:
            assert checkpoint.float32("a").dtype == np.float32
            assert checkpoint.float32("a").tolist() == exact.tolist()


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("model", "state_dict")])
def test_wrappers(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    checkpoints.write_pth(tmp_path / "x.pth", [array_entry("emb.weight", np.ones((3, 2), "<f4"))], wrap)
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["emb.weight"]


def test_a_prefix_common_to_all_names_is_taken_off(tmp_path: Path) -> None:
    ones = np.ones((3, 2), "<f4")
    names = ["module.model.head.weight", "module.model.emb.weight"]
    checkpoints.write_pth(tmp_path / "x.pth", [array_entry(name, ones) for name in names])
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["head.weight", "emb.weight"]
        assert checkpoint.tensors["emb.weight"].name == "emb.weight"


def test_small_values_beside_the_tensors_are_kept(tmp_path: Path) -> None:
    pickle = Pickle().op(b"}(").text("a").tensor("FloatStorage", "0", 1, (1,)).text("_strategy").text("cpu fp32")
    pickle.text("_version").op(b"G@\x10\0\0\0\0\0\0").text("rest").op(b"]u")
    path = write_parts(tmp_path / "x.pth", pickle.done(), {"0": bytes(4)})
    with open_checkpoint(path) as checkpoint:
        assert dict(checkpoint.metadata) == {"_strategy": "cpu fp32", "_version": 4.0}
        assert checkpoint.ignored == ("rest",)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_that_are_not_there(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"x{suffix}", [array_entry("a", np.ones((3, 2), "<f4"))])
    with open_checkpoint(tmp_path / f"x{suffix}") as checkpoint:
        for start, rows in ((-1, 1), (0, 4), (3, 1), (4, None), (1, -1)):
            with pytest.raises(IndexError):
                checkpoint.read("a", start, rows)
        assert checkpoint.read("a", 3, 0).shape == (0, 2)
        with pytest.raises(WorkerError, match="no tensor 'b'"):
            checkpoint.read("b")
    with pytest.raises(WorkerError, match="closed"):
        checkpoint.read("a")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    one, two = (tmp_path / name for name in ("a", "b"))
    for folder in (one, two):
        folder.mkdir()
        checkpoints.make(folder / f"x{suffix}", version="6", width=64, vocab=50, layers=1, seed=5)
    assert (one / f"x{suffix}").read_bytes() == (two / f"x{suffix}").read_bytes()


@pytest.mark.parametrize("version", ["4", "5.2", "7"])
def test_fixtures_are_read(fixtures: Path, version: str) -> None:
    with open_checkpoint(fixtures / f"random-v{version}.pth") as checkpoint:
        assert checkpoint.tensors["emb.weight"] == TensorInfo("emb.weight", "bf16", (320, 128))
        for name in checkpoint.tensors:
            assert np.isfinite(checkpoint.float32(name)).all()
        assert checkpoint.verify() > 1_000_000


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_the_maker_from_the_command_line(tmp_path: Path, name: str) -> None:
    """As its own documentation says it is called."""
    command = [sys.executable, checkpoints.__file__, "--version", "7", "--layers", "2", "--width", "128"]
    command += ["--vocab", "320", "--seed", "0", "--out", str(tmp_path / name)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert str((tmp_path / name).stat().st_size) in done.stdout
    with open_checkpoint(tmp_path / name) as checkpoint:
        shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}
        assert shapes == checkpoints.shapes("7", layers=2, width=128, vocab=320)


MEMORY = """
import pathlib, resource, sys
from rwkvflow.worker.read.open import open_checkpoint
status = pathlib.Path("/proc/self/status")  # unlike ru_maxrss, it knows nothing of the process that started us
def peak():
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")))
with open_checkpoint(sys.argv[1]) as checkpoint:
    checkpoint.float32("t0", 0, 64)
    before = peak()
    for name, info in checkpoint.tensors.items():
        for row in range(0, info.shape[0], 64):
            checkpoint.float32(name, row, 64)
    checkpoint.verify()
    print(peak() - before)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_is_that_of_the_rows_asked_for(tmp_path: Path, suffix: str) -> None:
    """256 MiB are read a quarter of a MiB at a time, in a process of its own; its peak grows by less than 8 MiB."""
    zeros = bytes(1 << 20)
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path, [Entry(f"t{i}", "bf16", (16384, 2048), lambda: [zeros] * 64) for i in range(4)])
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", MEMORY, path], cwd=root, capture_output=True, text=True, check=True)
    path.unlink()
    assert int(done.stdout) < 8 << 10, "KiB"
