"""Compilers for the engine: zig (from PyPI, the same everywhere) or what the machine has; and a CMake toolchain file.

zig is one program that is a C and C++ compiler, archiver and linker with its own libc headers, so the result depends
on its version and the target only. CMake wants separate programs, so small scripts stand in for them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.worker import advice
from rwkvflow.worker.build.patch_rules import NEUTRAL, baseline_cpu
from rwkvflow.worker.errors import WorkerError

PACKAGES_VARIABLE = "RWKVFLOW_TOOLCHAIN"  # folder with the packages ziglang, cmake and ninja
CACHE_VARIABLE = "RWKVFLOW_ZIG_CACHE"  # kept between builds; zig's own libraries are compiled once
EPOCH = "315532800"  # 1980-01-01: what __DATE__ reads

SYSTEMS = {"linux": "Linux", "macos": "Darwin", "windows": "Windows", "wasi": "WASI"}
LIBRARY_SUFFIX = {"linux": ".so", "macos": ".dylib", "windows": ".dll", "wasi": ".wasm"}
POINTER = {"x86_64": 8, "aarch64": 8, "arm64": 8, "wasm32": 4}

# Never from the caller's environment: they change what is built.
KEPT = ("PATH", "SYSTEMROOT", "SDKROOT", "DEVELOPER_DIR")


@dataclass(frozen=True)
class Toolchain:
    """How to call CMake for one target. `hidden` maps paths of this machine to what is shown for them."""

    name: str
    target: str
    platform: str  # of the target: <system>-<processor>
    cmake: str
    arguments: tuple[str, ...]  # of cmake's configure call
    env: Mapping[str, str]
    version: str  # "zig 0.17.0", "" for the system's: CMake tells
    hidden: Mapping[str, str]

    @property
    def system(self) -> str:
        """The operating system, such as "linux"."""
        return self.platform.partition("-")[0]


def host_platform() -> str:
    """This machine as <system>-<processor>: linux-x86_64, linux-aarch64, macos-arm64."""
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine()
    if sys.maxsize > 1 << 32:
        # A 32-bit personality (linux32, some build farms) changes what the kernel says, not what runs here.
        machine = {"i386": "x86_64", "i686": "x86_64", "armv7l": "aarch64", "armv8l": "aarch64"}.get(machine, machine)
    return f"{system}-{_processor(machine, system)}"


def default_target() -> str:
    """zig's triple for this machine: glibc 2.17 (2012) on Linux, so that the library loads anywhere."""
    system, _, processor = host_platform().partition("-")
    if system == "macos":
        return f"{'aarch64' if processor == 'arm64' else processor}-macos"
    if system == "windows":
        return f"{processor}-windows-gnu"
    return f"{processor}-linux-gnu.2.17"


def target_platform(target: str) -> str:
    """<system>-<processor> of a zig triple. Raises WorkerError for what is no triple or no known system."""
    if not re.fullmatch(r"[a-z0-9_]+-[a-z0-9.]+(-[a-z0-9.]+)?", target):
        raise WorkerError(f"target {target!r} is no zig target triple such as {default_target()}")
    processor, system = target.split("-")[:2]
    system = system.partition(".")[0]
    if system not in SYSTEMS:
        raise WorkerError(f"target {target!r}: unknown system {system!r}; there are {', '.join(SYSTEMS)}")
    return f"{system}-{_processor(processor, system)}"


def prepare(name: str, target: str | None, root: Path) -> Toolchain:
    """Write wrapper scripts and a toolchain file below root/tools. `root` also holds source/ and build/.

    Raises WorkerError saying what to install where a compiler, CMake or a build tool is missing.
    """
    tools = root / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    if name == "zig":
        return _zig(target or default_target(), root, tools)
    if name == "system":
        return _system(target, root, tools)
    raise WorkerError(f"unknown toolchain {name!r}; there are zig and system")


def _zig(target: str, root: Path, tools: Path) -> Toolchain:
    platform_name = target_platform(target)
    zig, cmake, ninja = _package("ziglang", "zig"), _package("cmake", "data/bin/cmake"), _ninja()
    packages = str(zig.parent.parent)
    flags = [
        "-target", target, f"-mcpu={baseline_cpu(platform_name)}", "-g0",  # else zig writes what -s takes out again
        "-Wno-date-time", f"-ffile-prefix-map={packages}={NEUTRAL}/toolchain",
    ]  # fmt: skip
    for script, command in (("cc", "cc"), ("c++", "c++")):
        _script(tools / script, [str(zig), command, *flags], strip=True)
    for script in ("ar", "ranlib"):
        _script(tools / script, [str(zig), script])
    cross = platform_name != host_platform()
    file = tools / "zig.cmake"
    # Where zig's own libraries are as sources: images/llama.cpp compiles what it needs of them.
    text = _zig_file(platform_name, root, tools, cross) + f"set(RWKVFLOW_ZIG_LIB [==[{zig.parent}/lib]==])\n"
    file.write_text(text, encoding="utf-8")
    cache = os.environ.get(CACHE_VARIABLE)
    env = _environment(root) | {
        "ZIG_GLOBAL_CACHE_DIR": str(Path(cache).resolve()) if cache else str(root / "zig-cache"),
        "ZIG_LOCAL_CACHE_DIR": str(root / "zig-local"),
    }
    arguments = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_TOOLCHAIN_FILE={file}")
    version = "zig " + _output([str(zig), "version"], env)
    try:
        _output([str(zig), "cc", *flags, "-E", "-x", "c", os.devnull], env)
    except WorkerError as error:
        raise WorkerError(f"target {target}: {error}") from error
    return Toolchain("zig", target, platform_name, str(cmake), arguments, env, version, {packages: "@TOOLCHAIN@"})


def _system(target: str | None, root: Path, tools: Path) -> Toolchain:
    here = host_platform()
    if target is not None and target_platform(target) != here:
        raise WorkerError(
            f"target {target} on {here}: the system's compiler builds for its own machine only\n"
            "  what to do: leave target out, or write toolchain: zig"
        )
    cc = _program("a C compiler", ("cc", "gcc", "clang"), "build-essential")
    cxx = _program("a C++ compiler", ("c++", "g++", "clang++"), "build-essential")
    cmake = _program("CMake", ("cmake",), "cmake")
    ninja = shutil.which("ninja")
    if ninja is None:
        _program("Ninja or make", ("make",), "ninja-build")
    file = tools / "system.cmake"
    file.write_text(_system_file(here, root, cc, cxx), encoding="utf-8")
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ("-G", "Unix Makefiles")
    hidden = {program: Path(program).name for program in (cc, cxx)}
    arguments = (*generator, f"-DCMAKE_TOOLCHAIN_FILE={file}")
    return Toolchain("system", here, here, cmake, arguments, _environment(root), "", hidden)


def _zig_file(platform_name: str, root: Path, tools: Path, cross: bool) -> str:
    system, _, processor = platform_name.partition("-")
    lines = _prefix_lines(root)
    if cross:
        lines += [f"set(CMAKE_SYSTEM_NAME {SYSTEMS[system]})", f"set(CMAKE_SYSTEM_PROCESSOR {processor})"]
    for variable, script in (("C_COMPILER", "cc"), ("CXX_COMPILER", "c++"), ("ASM_COMPILER", "cc")):
        lines.append(f'set(CMAKE_{variable} "{tools / script}")')
    for script in ("ar", "ranlib"):
        for language in ("", "C_COMPILER_", "CXX_COMPILER_"):
            lines.append(f'set(CMAKE_{language}{script.upper()} "{tools / script}" CACHE FILEPATH "")')
    # CMake identifies and tests a C++ compiler by linking a program, for which zig would have to compile its C++
    # library first: a minute or two, for nothing where the project needs none. So it identifies by an object file
    # (-c), and what its tests would find out stands here.
    abi = {"linux": "ELF", "macos": "", "windows": "", "wasi": ""}[system]
    for language in ("C", "CXX"):
        lines += [
            f"set(CMAKE_{language}_COMPILER_ID_FLAGS_ALWAYS -c)",
            f"set(CMAKE_{language}_COMPILER_WORKS TRUE)",
            f"set(CMAKE_{language}_ABI_COMPILED TRUE)",
            f"set(CMAKE_{language}_SIZEOF_DATA_PTR {POINTER.get(processor, 8)})",
            f"set(CMAKE_{language}_BYTE_ORDER LITTLE_ENDIAN)",
            f'set(CMAKE_{language}_COMPILER_ABI "{abi}")',
        ]
    # What a project has CMake try out is compiled like the rest: zig makes its runtime once, and not for debugging too.
    lines.append("set(CMAKE_TRY_COMPILE_CONFIGURATION Release)")
    if system == "macos":
        lines += ['set(CMAKE_OSX_SYSROOT "")', 'set(CMAKE_INSTALL_NAME_TOOL "/bin/true" CACHE FILEPATH "")']
    # Nothing of the machine's own libraries and headers; what the project itself has built may be found.
    lines += [
        f'set(CMAKE_FIND_ROOT_PATH "{root}/nothing" "{root}")',
        "set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)",
        *(f"set(CMAKE_FIND_ROOT_PATH_MODE_{kind} ONLY)" for kind in ("LIBRARY", "INCLUDE", "PACKAGE")),
    ]
    return "\n".join(lines) + "\n"


def _system_file(platform_name: str, root: Path, cc: str, cxx: str) -> str:
    lines = _prefix_lines(root)
    # A recipe may name other compilers in its cmake options.
    for language, program in (("C", cc), ("CXX", cxx)):
        lines += [
            f"if(NOT DEFINED CMAKE_{language}_COMPILER)",
            f'  set(CMAKE_{language}_COMPILER "{program}")',
            "endif()",
        ]
    if platform_name.startswith("linux"):
        for kind in ("SHARED", "MODULE", "EXE"):
            lines.append(f'set(CMAKE_{kind}_LINKER_FLAGS_INIT "-s -Wl,--build-id=none")')
    return "\n".join(lines) + "\n"


def _prefix_lines(root: Path) -> list[str]:
    return [
        f'set(CMAKE_{language}_FLAGS_INIT "-ffile-prefix-map={root}={NEUTRAL}")' for language in ("C", "CXX", "ASM")
    ]


def _script(path: Path, command: list[str], strip: bool = False) -> None:
    """A wrapper. With `strip`, -s joins every call that may link: zig's objcopy cannot strip."""
    call = "exec " + " ".join(shlex.quote(part) for part in command)
    lines = ["#!/bin/sh"]
    if strip:
        lines += ["for argument; do", "  case $argument in", f'    -c|-S|-E|-M|-MM|-fsyntax-only) {call} "$@" ;;']
        lines += ["  esac", "done", f'{call} "$@" -s']
    else:
        lines.append(f'{call} "$@"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)


def _environment(root: Path) -> dict[str, str]:
    for folder in ("home", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {"PATH": os.defpath} | kept | {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "LC_ALL": "C",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": EPOCH,
        "ZERO_AR_DATE": "1",
    }  # fmt: skip


def _processor(machine: str, system: str) -> str:
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    return "arm64" if system == "macos" and name == "aarch64" else name


def _package(package: str, relative: str) -> Path:
    """A program inside a Python package, of the toolchain folder or of this interpreter."""
    folder = os.environ.get(PACKAGES_VARIABLE)
    if folder:
        base = Path(folder).resolve() / package
    else:
        spec = importlib.util.find_spec(package)
        locations = list(spec.submodule_search_locations or ()) if spec else []
        base = Path(locations[0]) if locations else Path(package)
    program = base / relative
    if not program.is_file():
        raise _missing(package)
    return program


def _ninja() -> Path:
    """ninja's wheel keeps its program in bin/, not in the package."""
    folder = os.environ.get(PACKAGES_VARIABLE)
    if folder:
        places = [Path(folder).resolve() / "bin", Path(folder).resolve() / "ninja" / "data" / "bin"]
    else:
        spec = importlib.util.find_spec("ninja")
        site = Path(spec.origin).parent.parent if spec and spec.origin else Path(sys.prefix)
        places = [Path(sys.executable).parent, Path(sys.prefix) / "bin", site / "bin", site / "ninja/data/bin"]
    for place in places:
        if (place / "ninja").is_file():
            return place / "ninja"
    raise _missing("ninja")


def _missing(package: str) -> WorkerError:
    where = os.environ.get(PACKAGES_VARIABLE)
    place = f"in ${PACKAGES_VARIABLE} ({where})" if where else "for this Python"
    return WorkerError(
        f"the zig toolchain lacks {package} {place}\n"
        f"  what to do: python3 -m pip install ziglang cmake ninja{advice.system_toolchain()}"
    )


def _program(what: str, names: tuple[str, ...], package: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise WorkerError(
        f"toolchain: system needs {what}, and there is no {' or '.join(names)} on PATH\n"
        f"  what to do: install one (Debian, Ubuntu: apt-get install {package}), or write toolchain: zig"
    )


def _output(argv: list[str], env: Mapping[str, str]) -> str:
    try:
        result = subprocess.run(argv, env=dict(env), capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise WorkerError(f"{Path(argv[0]).name} does not run on this machine: {error}") from error
    if result.returncode:
        wrong = [line for line in result.stderr.splitlines() if "error:" in line] or [f"exit code {result.returncode}"]
        raise WorkerError(f"{Path(argv[0]).name}: {wrong[0]}")
    return result.stdout.strip()
