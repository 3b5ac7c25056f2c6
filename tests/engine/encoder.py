"""Builds the quantizers alone into a library, for tests of what they write; kept between runs by a digest of what it is
built from."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvflow.base.files import locked

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = REPOSITORY / "rwkvflow" / "engine"
KEPT = REPOSITORY / ".rwkvflow" / "tests"
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
    names = (
        "quantize/iq_types.cc",
        "quantize/k_types.cc",
        "quantize/quantize.cc",
        "quantize/quantize_k.cc",
        "api/encode.cc",
    )
    sources = [str(ENGINE / "src" / name) for name in names]
    includes = [f"-I{ENGINE / folder}" for folder in ("include", "src")]
    call = [*command, *FLAGS, *options, *includes, *sources, "-pthread"]
    (folder / "lib").mkdir(parents=True)
    shutil.copyfile(_kept(compiler, call), folder / "lib" / "librwkv.so")
    return folder


def _kept(compiler: str, call: list[str]) -> Path:
    """The library that this call makes; a dozen files of tests need the same one, in parallel."""
    state = hashlib.sha256("\0".join(call).encode())
    for path in sorted(path for kind in ("cc", "h", "inc") for path in ENGINE.rglob(f"*.{kind}")):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    wanted = KEPT / "encoders" / f"{compiler}-{state.hexdigest()[:16]}.so"
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with locked(wanted.with_suffix(".lock"), fcntl.LOCK_EX):
        if not wanted.is_file():
            partial = wanted.with_suffix(".part")
            done = subprocess.run([*call, "-o", str(partial)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            partial.rename(wanted)
    return wanted


def any_compiler() -> str:
    """A compiler that is there, the quicker one first; skips where there is none."""
    found = list(compilers())
    if not found:
        pytest.skip("no C++ compiler on this machine")
    return found[0]
