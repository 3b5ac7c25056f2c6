"""Bad model files and bad arguments, with the library built to check itself: a flag and a message, never a crash."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from tests.engine import encoder, librwkv
from tests.helpers import checkpoints

ALLOC, OPEN, READ, MAGIC, VERSION, DATA_TYPE, SHAPE, DIMENSION, KEY, DATA, MISSING = (
    1,
    2,
    4,
    6,
    7,
    8,
    10,
    11,
    12,
    13,
    14,
)
FILE, MODEL, PARAMS = 2, 3, 4
SMALL: dict[str, Any] = {"layers": 1, "width": 32, "vocab": 40, "head_size": 16}
# Threads share columns by 32: work for four.
LARGER: dict[str, Any] = {"layers": 2, "width": 128, "vocab": 101, "head_size": 32}
# Sizes that no machine has must come back as null, not end the process.
CHECKED = {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


class Opener:
    """The c_api program, opening files one after the other: models, or what else it knows."""

    def __init__(self, program: Path, folder: Path, what: str = "open") -> None:
        self.path = folder / "model.bin"
        self._process = subprocess.Popen(
            [program, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **CHECKED},
        )

    def __call__(self, data: bytes) -> tuple[int, int, str]:
        """(where, what, message) of opening a file of these bytes; (0, 0, "opened") when it opens and evaluates."""
        self.path.write_bytes(data)
        return self.open(self.path)

    def open(self, path: Path) -> tuple[int, int, str]:
        """The same of a file that is there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().rstrip("\n")
        if not line:
            assert self._process.stderr is not None
            pytest.fail(f"the process ended: {self._process.stderr.read()[-4000:]}")
        if line == "opened":
            return 0, 0, line
        flags, _, message = line.partition(" ")
        assert int(flags) != 0
        assert message
        return int(flags) >> 8, int(flags) & 255, message

    def close(self) -> None:
        """Ends it; leaks and errors show here."""
        _, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, errors[-4000:]
        assert not errors


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_sanitizers(request.config)


@pytest.fixture(scope="module")
def opener(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    out = Opener(program, tmp_path_factory.mktemp("hostile"))
    yield out
    out.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small good file of each version, some of them quantized."""
    root = tmp_path_factory.mktemp("files")
    engine = encoder.build(root / "encoder", encoder.any_compiler())
    out = {}
    for version, kind in (("4", "q4_0"), ("5.0", "f32"), ("5.1", "f16"), ("5.2", "q5_1"), ("6", "q8_0"), ("7", "f16")):
        source = checkpoints.make(root / f"{version}.pth", version, **SMALL)
        (outcome,) = convert(source, engine, [ConversionJob("x", f"ggml-{kind}", root / f"{version}.bin")])
        assert outcome.failure is None
        out[version] = (root / f"{version}.bin").read_bytes()
    return out


def tensors(data: bytes) -> Iterator[tuple[str, int, int, tuple[int, ...], int, int]]:
    """(name, offset of its header, type, dims as in the file, offset of the data, its end) of each tensor."""
    at = 24
    while at < len(data):
        start = at
        n_dims, length, kind = struct.unpack_from("<3i", data, at)
        dims = struct.unpack_from(f"<{n_dims}i", data, at + 12)
        at += 12 + 4 * n_dims
        name = data[at : at + length].decode()
        at += length
        count = 1
        for dim in dims:
            count *= dim
        begin = at
        at += {0: 4, 1: 2}[kind] * count if kind < 2 else count // 32 * {2: 18, 3: 20, 7: 22, 8: 24, 9: 34}[kind]
        yield name, start, kind, dims, begin, at


def patched(data: bytes, at: int, *values: int) -> bytes:
    new = struct.pack(f"<{len(values)}i", *values)
    return data[:at] + new + data[at + len(new) :]


def without(data: bytes, wanted: str) -> bytes:
    for name, start, _, _, _, end in tensors(data):
        if name == wanted:
            return data[:start] + data[end:]
    raise AssertionError(wanted)


VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7")


def test_good_files_open(opener: Opener, files: dict[str, bytes]) -> None:
    for version, data in files.items():
        assert opener(data) == (0, 0, "opened"), version


def test_bad_headers(opener: Opener, files: dict[str, bytes]) -> None:
    good = files["4"]
    cases: list[tuple[bytes, int, int]] = [
        (b"", FILE, READ),
        (good[:23], FILE, READ),
        (patched(good, 0, 0x67676D6C), FILE, MAGIC),
        (b"<!DOCTYPE html><html><body>Not found", FILE, MAGIC),
        (b"PK\x03\x04" + bytes(100), FILE, MAGIC),
        (patched(good, 4, 99), FILE, VERSION),
        (patched(good, 4, 102), FILE, VERSION),
        (patched(good, 4, 100), FILE, DATA_TYPE),
        (patched(good, 20, 4), FILE, DATA_TYPE),
        (patched(good, 20, -1), FILE, DATA_TYPE),
        (good[:24], PARAMS, MISSING),
    ]
    cases += [(patched(good, at, value), FILE, DIMENSION) for at in (8, 12, 16) for value in (0, -1, -(2**31))]
    cases += [(patched(good, 16, value), MODEL, DIMENSION) for value in (1000, 2**31 - 1)]
    cases += [(patched(good, 8, 2**31 - 1), PARAMS, SHAPE), (patched(good, 12, 33), PARAMS, SHAPE)]
    cases += [(patched(good, 12, 2**31 - 1), MODEL, DIMENSION), (patched(good, 16, 2), PARAMS, MISSING)]
    for data, where, what in cases:
        assert opener(data)[:2] == (where, what), data[:24]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy"])
def test_a_checkpoint_is_told_how_it_becomes_a_bin(suffix: str, opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".legacy":
        path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(40))
    else:
        checkpoints.make(path, "7", layers=1, width=64, vocab=20)
    where, what, message = opener(path.read_bytes())
    assert (where, what) == (FILE, MAGIC)
    assert "checkpoint; first make a .bin of it: rwkvflow convert IN OUT.bin --format ggml-f16" in message


@pytest.mark.parametrize("version", VERSIONS)
def test_bad_tensor_headers(version: str, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[version]
    for name, start, _, dims, begin, _ in list(tensors(good))[:12]:
        for at, value, what in (
            (0, 0, SHAPE),
            (0, 4, SHAPE),
            (0, -1, SHAPE),
            (0, 2**31 - 1, SHAPE),
            (4, 0, KEY),
            (4, -5, KEY),
            (4, 2**31 - 1, KEY),
            (8, 30, DATA_TYPE),
            (8, -7, DATA_TYPE),
            (12, 0, DIMENSION),
            (12, -32, DIMENSION),
        ):
            assert opener(patched(good, start + at, value))[:2] == (PARAMS, what), (name, at, value)
        where, what, message = opener(patched(good, start + 12, *[2**31 - 32] * len(dims)))
        assert (where, what) == (PARAMS, DATA), message
        for control in (0, 10, 127):
            renamed = good[: begin - 1] + bytes([control]) + good[begin:]
            assert opener(renamed)[:2] == (PARAMS, KEY), name


@pytest.mark.parametrize("version", VERSIONS)
def test_every_truncation(version: str, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[version]
    ends = {end for *_, end in tensors(good)}
    cuts = {24, *(end + off for end in ends for off in (-1, 0, 1, 5, 11, 13, 20)), *range(24, len(good), 997)}
    for cut in sorted(cut for cut in cuts if cut < len(good)):
        where, what, message = opener(good[:cut])
        assert (where, what) != (0, 0), cut
        if cut not in ends and cut != 24:
            assert (where, what) in ((PARAMS, READ), (PARAMS, DATA)), (cut, message)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_missing_tensor_is_named(version: str, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[version]
    told = 0
    for name, *_ in tensors(good):
        where, _, message = opener(without(good, name))
        assert where == PARAMS, (name, message)
        told += name in message
    assert told >= len(list(tensors(good))) - 4  # without those that tell the version, others are missing


@pytest.mark.parametrize("version", VERSIONS)
def test_every_wrong_shape_is_refused(version: str, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[version]
    for name, start, kind, dims, begin, end in tensors(good):
        row = (end - begin) // dims[-1]
        fewer = (*dims[:-1], dims[-1] - 1) if dims[-1] > 1 else (*dims[:-1], 2)
        body = good[begin : begin + row * fewer[-1]] if dims[-1] > 1 else good[begin:end] * 2
        if kind > 1 and len(dims) == 1:
            continue
        smaller = patched(good[:begin], start + 12, *fewer) + body + good[end:]
        where, what, message = opener(smaller)
        assert where in (PARAMS, MODEL), (name, dims, message)
        assert what in (SHAPE, MISSING), (name, dims, message)


def test_twice_the_same_name(opener: Opener, files: dict[str, bytes]) -> None:
    good = files["7"]
    name, start, _, _, _, end = next(iter(tensors(good)))
    assert opener(good + good[start:end]) == (PARAMS, KEY, f"the file has two tensors {name}")


def test_one_head_and_a_head_a_channel(opener: Opener, files: dict[str, bytes]) -> None:
    for version, name in (("5.2", "time_decay"), ("6", "time_faaaa"), ("7", "r_k")):
        good = files[version]
        start, dims = next((s, d) for n, s, _, d, _, _ in tensors(good) if n == f"blocks.0.att.{name}")
        for heads in (1, 2, 32):
            other = patched(good, start + 12, *[1] * (len(dims) - 2), 32 // heads, heads)
            assert opener(other) == (0, 0, "opened"), (version, heads)


def run_checks(program: Path, model: Path, scratch: Path) -> None:
    done = subprocess.run(
        [program, "check", model, scratch], capture_output=True, text=True, env={**os.environ, **CHECKED}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.fixture(scope="session")
def f32_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("f32")
    engine = encoder.build(root / "encoder", encoder.any_compiler())
    for version in VERSIONS:
        source = checkpoints.make(root / f"{version}.pth", version, **LARGER)
        (outcome,) = convert(source, engine, [ConversionJob("x", "ggml-f32", root / f"{version}.bin")])
        assert outcome.failure is None
    return {version: root / f"{version}.bin" for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_c_api(version: str, program: Path, f32_models: dict[str, Path], tmp_path: Path) -> None:
    run_checks(program, f32_models[version], tmp_path / "scratch")


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_threads_do_not_race(
    version: str, request: pytest.FixtureRequest, f32_models: dict[str, Path], tmp_path: Path
) -> None:
    run_checks(librwkv.with_sanitizers(request.config, "thread"), f32_models[version], tmp_path / "scratch")


def test_kernels_stay_inside_their_memory(program: Path) -> None:
    check = program.parent / "out" / "rwkv-check"
    done = subprocess.run([check], capture_output=True, text=True, env={**os.environ, **CHECKED})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


LIKELY = st.sampled_from([0, 1, -1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 255, 256, 65536, 2**24, 2**30, 2**31 - 1, -(2**31)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_never_crash(data: Any, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[data.draw(st.sampled_from(VERSIONS))]
    spans = [(24, 0)] + [(begin - start, start) for _, start, _, _, begin, _ in tensors(good)]
    damaged = good
    for _ in range(data.draw(st.integers(1, 3))):
        length, start = data.draw(st.sampled_from(spans))
        if data.draw(st.booleans()):
            at = start + data.draw(st.integers(0, max(0, length - 4)))
            damaged = patched(damaged, at, data.draw(LIKELY | st.integers(-(2**31), 2**31 - 1)))
        else:
            at = start + data.draw(st.integers(0, length - 1))
            damaged = damaged[:at] + data.draw(st.binary(min_size=1, max_size=8)) + damaged[at:]
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    opener(damaged)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_weights_never_crash(data: Any, opener: Opener, files: dict[str, bytes]) -> None:
    good = files[data.draw(st.sampled_from(VERSIONS))]
    _, _, _, _, begin, end = data.draw(st.sampled_from(list(tensors(good))))
    noise = data.draw(
        st.sampled_from([b"\xff", b"\x7f", b"\x80", b"\x00\x7c", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f"])
    )
    filled = (noise * (end - begin))[: end - begin]
    assert opener(good[:begin] + filled + good[end:]) == (0, 0, "opened")
