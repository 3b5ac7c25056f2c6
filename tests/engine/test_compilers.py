"""librwkv as GCC builds it: kernels give the bits that zig's give, on x86-64 and on ARM."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.engine import emulators, librwkv


def bits(*command: str | Path) -> dict[str, str]:
    """By the name of a set of kernels the digest of all that came of it; see kernel_check.cc."""
    done = subprocess.run([*command, "quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"(?m)^(\w+): bits ([0-9a-f]{16})$", done.stdout))


@pytest.fixture(scope="module")
def zig(request: pytest.FixtureRequest) -> dict[str, str]:
    return bits(librwkv.with_zig(request.config) / "rwkv-check")


def test_gcc_gives_the_same_bits_and_its_sanitizers_find_nothing(
    request: pytest.FixtureRequest, zig: dict[str, str]
) -> None:
    found = bits(librwkv.with_sanitizers(request.config).parent / "out" / "rwkv-check")
    assert len(found) > 1
    assert found == {name: zig[name] for name in found}


@pytest.mark.soak
def test_gcc_gives_the_same_bits_as_it_is_used(tmp_path: Path, zig: dict[str, str]) -> None:
    assert bits(librwkv.with_compiler(librwkv.gcc("g++"), tmp_path) / "rwkv-check") == zig


@pytest.mark.soak
def test_gcc_builds_it_for_arm(tmp_path: Path, zig: dict[str, str]) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++ on this machine (Debian: apt-get install g++-aarch64-linux-gnu)")
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    built = librwkv.with_compiler(compiler, tmp_path, *system)
    found = bits(emulators.find("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64"), built / "rwkv-check")
    assert set(found) == {"generic", "neon", "i8mm"}
    assert found["generic"] == zig["generic"]
    assert found["neon"] == found["i8mm"] == zig[max(zig, key=lambda name: name.startswith("avx"))]
