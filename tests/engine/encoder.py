"""Builds the quantizers alone into a library, for tests of what they write."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "rwkvflow" / "engine"
FLAGS = [
    *("-std=c++20", "-O2", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-nostdinc++", "-ffp-contract=off"),
    *("-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-DRWKV_BUILD", "-DRWKV_SHARED"),
    *("-fno-math-errno", "-Wno-psabi"),
]


def compilers() -> dict[str, list[str]]:
    """Those of this machine, by name: the system's and zig's."""
    found = {}
    if system := shutil.which("c++"):
        found["system"] = [system]
    if importlib.util.find_spec("ziglang"):
        found["zig"] = [sys.executable, "-m", "ziglang", "c++"]
    return found


def build(folder: Path, compiler: str, *options: str) -> Path:
    """An engine folder with lib/librwkv.so; skips where there is no such compiler."""
    command = compilers().get(compiler)
    if command is None:
        pytest.skip(f"no {compiler} C++ compiler on this machine")
    library = folder / "lib" / "librwkv.so"
    library.parent.mkdir(parents=True)
    names = (
        "quantize/iq_types.cc",
        "quantize/k_types.cc",
        "quantize/quantize.cc",
        "quantize/quantize_k.cc",
        "api/encode.cc",
    )
    sources = [str(ENGINE / "src" / name) for name in names]
    includes = [f"-I{ENGINE / folder}" for folder in ("include", "src")]
    done = subprocess.run(
        [*command, *FLAGS, *options, *includes, "-o", str(library), *sources, "-pthread"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def any_compiler() -> str:
    """A compiler that is there, the quicker one first; skips where there is none."""
    found = list(compilers())
    if not found:
        pytest.skip("no C++ compiler on this machine")
    return found[0]
