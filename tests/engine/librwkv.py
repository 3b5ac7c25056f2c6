"""Builds librwkv for tests, with zig or with gcc and sanitizers; kept between runs by a digest of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkvflow.base.files import locked
from rwkvflow.worker.build import toolchain

ENGINE = Path(__file__).resolve().parents[2] / "rwkvflow" / "engine"
PROGRAM = Path(__file__).resolve().parent / "c_api.c"
CHECK = Path(__file__).resolve().parent / "kernel_check.cc"


def digest(*further: Path) -> str:
    """Of everything that a build reads."""
    state = hashlib.sha256()
    files = [path for kind in ("cc", "h", "inc") for path in ENGINE.rglob(f"*.{kind}")]
    files += [ENGINE / "CMakeLists.txt", PROGRAM, CHECK]
    for path in sorted([*files, Path(__file__), *further]):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def built(config: pytest.Config, name: str, make: Callable[[Path], None], *further: Path) -> Path:
    """The folder where a build of these sources and `further` ones is kept; make(folder) builds it where it is not.

    By one process at a time, as several files of tests need it in parallel. Older ones of the same name go.
    """
    assert config.cache is not None
    root = Path(config.cache.mkdir("librwkv"))
    wanted = root / f"{name}-{digest(*further)}"
    for old in root.glob(f"{name}-*"):
        if old != wanted:
            shutil.rmtree(old, ignore_errors=True)
    with locked(root / f"{name}.lock", fcntl.LOCK_EX):
        if not (wanted / "done").is_file():
            wanted.mkdir(exist_ok=True)
            make(wanted)
            (wanted / "done").touch()
    return wanted


def gcc(name: str = "gcc") -> str:
    """The compiler `gcc` or `g++`, whose sanitizers are used; skips where there is none."""
    found = shutil.which(name)
    if found is None or not sys.platform.startswith("linux"):
        pytest.skip(f"no {name} on this machine")
    return found


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def _cmake(tool: str, arguments: list[str], build: Path, env: dict[str, str] | None) -> None:
    _run([tool, "-S", str(ENGINE), "-B", str(build), "-DRWKV_WERROR=ON", f"-DRWKV_CHECK={CHECK}", *arguments], env)
    _run([tool, "--build", str(build), "--parallel", "2"], env)


def with_zig(config: pytest.Config) -> Path:
    """A folder with librwkv.so, rwkv (the tool) and rwkv-check (kernel_check.cc), as the engine stage builds them."""
    return _with_zig(config, "zig", None)


def static(config: pytest.Config) -> Path:
    """The same for x86-64, with a tool and an rwkv-check that need nothing of the machine but its kernel."""
    return _with_zig(config, "static", "x86_64-linux-musl")


def _with_zig(config: pytest.Config, name: str, target: str | None) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("ziglang", "cmake", "ninja")):
        pytest.skip("the packages ziglang, cmake and ninja are not here")

    def make(build: Path) -> None:
        assert config.cache is not None
        env = dict(os.environ)
        env.setdefault(toolchain.CACHE_VARIABLE, str(config.cache.mkdir("zig")))
        os.environ.setdefault(toolchain.CACHE_VARIABLE, env[toolchain.CACHE_VARIABLE])
        tools = toolchain.prepare("zig", target, build)
        _cmake(tools.cmake, list(tools.arguments), build / "out", dict(tools.env))

    return built(config, name, make) / "out"


def kernel_sets(*tool: str | Path) -> tuple[str, ...]:
    """Names of the sets of kernels in that build of the rwkv tool, the generic one first and the better ones later."""
    told = subprocess.run([*tool, "info"], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in told.splitlines() if line.startswith("SETS=")]
    names = tuple(line.removeprefix("SETS=").split(","))
    assert names[0] == "generic", told
    assert len(names) > 1, told
    return names


def kernels_used(wanted: str, *tool: str | Path) -> str:
    """Those that the tool takes where RWKV_KERNELS names `wanted`: these, or others where they do not run."""
    env = {**os.environ, "RWKV_KERNELS": wanted}
    told = subprocess.run([*tool, "info"], capture_output=True, text=True, env=env, check=True).stdout
    return told.split()[-1].removeprefix("KERNELS=")


def with_sanitizers(config: pytest.Config, which: str = "address,undefined") -> Path:
    """The program c_api.c, and out/rwkv-check beside it, built by the system's compilers to check themselves."""
    compiler, c_compiler = gcc("g++"), gcc()

    def make(build: Path) -> None:
        sanitized(build, compiler, which)
        flags = ["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-fsanitize={which}", f"-I{ENGINE / 'include'}"]
        library = [f"-L{build / 'out'}", "-lrwkv", "-lpthread", f"-Wl,-rpath,{build / 'out'}"]
        _run([c_compiler, *flags, "-o", str(build / "c_api"), str(PROGRAM), *library])

    return built(config, which.replace(",", "-"), make) / "c_api"


def with_compiler(compiler: str, build: Path, *options: str) -> Path:
    """A folder with librwkv.so and rwkv-check (kernel_check.cc) below `build`, as users of that compiler build it."""
    cmake = shutil.which("cmake") or str(toolchain.prepare("zig", None, build / "tools").cmake)
    options = (f"-DCMAKE_CXX_COMPILER={compiler}", "-DRWKV_TOOL=OFF", *_generator(), *options)
    _cmake(cmake, list(options), build / "out", None)
    return build / "out"


def sanitized(build: Path, compiler: str, which: str) -> Path:
    """The folder with a librwkv.so that checks itself, below `build`."""
    flags = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1")
    return with_compiler(compiler, build, f"-DRWKV_SANITIZE={which}", *flags)


def _generator() -> list[str]:
    ninja = shutil.which("ninja")
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
