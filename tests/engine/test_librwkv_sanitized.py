"""The C API from C with the sanitizers on, for each set of kernels that this processor has: odd sizes, F16, threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.model.versions import VERSIONS
from tests.engine import encoder, librwkv
from tests.helpers import checkpoints

# 120 columns in heads of 40 leave rests behind every vector; 128 in heads of 32 none.
SIZES: dict[str, dict[str, Any]] = {
    "odd": {"layers": 2, "width": 120, "vocab": 101, "head_size": 40},
    "even": {"layers": 2, "width": 128, "vocab": 96, "head_size": 32},
}
OPTIONS = {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("sanitized")
    engine = encoder.build(root / "encoder", encoder.any_compiler())
    made = {}
    for size, sizes in SIZES.items():
        for version in VERSIONS:
            source = checkpoints.make(root / "source.pth", version, **sizes)
            made[size, version] = root / f"{size}-{version}.bin"
            (outcome,) = convert(source, engine, [ConversionJob("x", "ggml-f16", made[size, version])])
            assert outcome.failure is None
    return made


def check(program: Path, model: Path, scratch: Path, kernels: str) -> None:
    """c_api.c: F16, and what it quantizes of it to each type, as one token, as sequences, in clones side by side."""
    done = subprocess.run(
        [program, "check", model, scratch],
        capture_output=True,
        text=True,
        env={**os.environ, **OPTIONS, "RWKV_KERNELS": kernels},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("size", SIZES)
def test_no_address_is_wrong_and_nothing_is_undefined(
    size: str, request: pytest.FixtureRequest, files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    tool = librwkv.with_zig(request.config) / "rwkv"
    run = [kernels for kernels in librwkv.kernel_sets(tool) if librwkv.kernels_used(kernels, tool) == kernels]
    assert "generic" in run
    program = librwkv.with_sanitizers(request.config)
    for kernels in run:
        for version in VERSIONS:
            check(program, files[size, version], tmp_path / "scratch", kernels)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_threads_race(
    version: str, request: pytest.FixtureRequest, files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    check(librwkv.with_sanitizers(request.config, "thread"), files["even", version], tmp_path / "scratch", "")


def test_work_that_threads_take_from_each_other_is_done_once_and_where_it_belongs(tmp_path: Path) -> None:
    program, source = tmp_path / "pool_check", Path(__file__).parent / "pool_check.cc"
    flags = ["-std=gnu++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread", "-pthread"]
    sources = [source, *(librwkv.ENGINE / "src" / "base" / name for name in ("pool.cc", "processors.cc"))]
    subprocess.run([librwkv.gcc("g++"), *flags, f"-I{librwkv.ENGINE / 'src'}", "-o", program, *sources], check=True)
    for threads in (1, 2, 3, 9):
        done = subprocess.run([program, str(threads)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        wrong, helped, placed, moved = map(int, done.stdout.split())
        assert (threads, wrong, moved) == (threads, 0, 0)
        assert (helped > 0) == (threads > 1)
        assert placed == (threads if threads <= 2 else 0)  # more than the cores are left where they are
    unplaced = subprocess.run([program, "2"], capture_output=True, text=True, env={**os.environ, "RWKV_PIN": "0"})
    assert unplaced.stdout.split()[2] == "0"
