"""Builds the wheels with librwkv in them, each for its platform, and holds each library against the wheel's tag.

    python scripts/build_wheels.py dist                       # all platforms
    python scripts/build_wheels.py dist --only manylinux_2_17_x86_64

Every library is built here by zig, which compiles for all of them; no container and no other machine is needed. Before
a wheel is made, its library must be for the tag's machine, must not ask for a newer glibc or macOS than the tag
promises, and must need nothing but the C library.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkvflow.execute.engine_of_wheel import TOOLCHAIN  # noqa: E402 - the checkout's own
from rwkvflow.stages import engine as engine_stage  # noqa: E402
from rwkvflow.worker.build import elf  # noqa: E402
from rwkvflow.worker.build.toolchain import host_platform  # noqa: E402
from rwkvflow.worker.protocol import parse  # noqa: E402

# The wheel's platform tag, and zig's name of it. macOS: the least system is read from the library.
TARGETS = {
    "manylinux_2_17_x86_64.manylinux2014_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64.manylinux2014_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_1_x86_64": "x86_64-linux-musl",
    "musllinux_1_1_aarch64": "aarch64-linux-musl",
    "macosx_x86_64": "x86_64-macos",
    "macosx_arm64": "aarch64-macos",
    "win_amd64": "x86_64-windows-gnu",
    "win_arm64": "aarch64-windows-gnu",
}
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
PE_MACHINES = {"amd64": 0x8664, "arm64": 0xAA64}
# What every Windows 10 has: the system's own, and the universal C runtime's parts.
PE_LIBRARIES = re.compile(r"(kernel32|ntdll|advapi32|ucrtbase|msvcrt|api-ms-win-[a-z0-9-]+)\.dll", re.IGNORECASE)
MACH_MACHINES = {"x86_64": 0x01000007, "arm64": 0x0100000C}
C_LIBRARIES = re.compile(r"(lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux-[a-z0-9-]+\.so\.\d|libc\.so|libc\.musl-\w+\.so\.1)")
LC_BUILD_VERSION, LC_VERSION_MIN_MACOSX, LC_LOAD_DYLIB = 0x32, 0x24, 0xC


def build_engine(target: str, work: Path) -> Path:
    """What the build-engine task makes of the checkout's engine for a target, and toolchain.json: what built it."""
    (work / "in").mkdir(parents=True)
    (work / "in" / "source").symlink_to(ROOT / "rwkvflow" / "engine")
    params = {**engine_stage.plain_request(host_platform()), "target": target}
    job = {"id": "engine", "params": {}, "outputs": {"engine": "out/engine"}}
    request = {"task": "build-engine", "params": params, "jobs": [job]}
    (work / "in" / "request.json").write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow.worker", "in/request.json"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [message for line in done.stdout.splitlines() if (message := parse(line)) and "failed" in message]
    if done.returncode or failed:
        raise SystemExit(f"{target}: {failed or done.stdout[-2000:] + done.stderr[-2000:]}")
    engine = work / "out" / "engine"
    versions = {name: metadata.version(name) for name in ("cmake", "ninja", "ziglang")}
    (engine / TOOLCHAIN).write_text(json.dumps(versions), encoding="utf-8")
    return engine


def fitting_tag(tag: str, library: Path) -> str:
    """The tag, with macOS' least version in it. Raises ValueError for a library that the tag does not fit."""
    data = library.read_bytes()
    if tag.startswith("win_"):
        _check_pe(tag, data)
        return tag
    if not tag.startswith("macosx_"):
        _check_elf(tag, data)
        return tag
    machine = tag.removeprefix("macosx_")
    found, least, needs = _mach(data)
    if found != MACH_MACHINES[machine]:
        raise ValueError(f"{tag}: the library is for another machine ({found:#x})")
    if strange := [name for name in needs if not name.startswith(("/usr/lib/", "/System/", "@rpath/librwkv"))]:
        raise ValueError(f"{tag}: the library needs {', '.join(strange)}")
    return f"macosx_{least[0]}_{0 if least[0] > 10 else least[1]}_{machine}"


def _check_elf(tag: str, data: bytes) -> None:
    machine = next(name for name in ELF_MACHINES if tag.endswith(name))
    (found,) = struct.unpack_from("<H", data, 18)
    if not elf.is_elf(data) or found != ELF_MACHINES[machine]:
        raise ValueError(f"{tag}: the library is for another machine ({found})")
    if strange := [name for name in elf.needed(data) if not C_LIBRARIES.fullmatch(name)]:
        raise ValueError(f"{tag}: the library needs {', '.join(strange)}")
    versions = {tuple(map(int, pair)) for pair in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)}
    if promised := re.match(r"manylinux_(\d+)_(\d+)_", tag):
        most = (int(promised[1]), int(promised[2]))
        if newer := sorted(version for version in versions if version > most):
            raise ValueError(f"{tag}: the library needs glibc {'.'.join(map(str, newer[-1]))}")
    elif versions:
        raise ValueError(f"{tag}: the library needs glibc, and the tag promises musl")


def _check_pe(tag: str, data: bytes) -> None:
    found, needs = _pe(data)
    if found != PE_MACHINES[tag.removeprefix("win_")]:
        raise ValueError(f"{tag}: the library is for another machine ({found:#x})")
    if strange := [name for name in needs if not PE_LIBRARIES.fullmatch(name)]:
        raise ValueError(f"{tag}: the library needs {', '.join(strange)}")


def _pe(data: bytes) -> tuple[int, list[str]]:
    """(machine, needed libraries) of a 64-bit library in Windows' format, PE32+."""
    (at,) = struct.unpack_from("<I", data, 60)
    if data[:2] != b"MZ" or data[at : at + 4] != b"PE\0\0":
        raise ValueError("not a Windows library")
    machine, sections = struct.unpack_from("<HH", data, at + 4)
    (optional,) = struct.unpack_from("<H", data, at + 20)
    if struct.unpack_from("<H", data, at + 24)[0] != 0x20B:
        raise ValueError("not a 64-bit Windows library")
    (imports,) = struct.unpack_from("<I", data, at + 24 + 112 + 8)  # the second directory
    table = [struct.unpack_from("<IIII", data, at + 24 + optional + 40 * index + 8) for index in range(sections)]

    def place(address: int) -> int:
        return int(next(raw + address - start for _, start, length, raw in table if start <= address < start + length))

    names = []
    entry = place(imports) if imports else 0
    while entry and (name := struct.unpack_from("<I", data, entry + 12)[0]):
        start = place(name)
        names.append(data[start : data.index(b"\0", start)].decode("ascii"))
        entry += 20
    return machine, names


def _mach(data: bytes) -> tuple[int, tuple[int, int], list[str]]:
    """(machine, least macOS, needed libraries) of a 64-bit Mach-O library."""
    magic, machine, _, _, count = struct.unpack_from("<IIIII", data)
    if magic != 0xFEEDFACF:
        raise ValueError("not a 64-bit Mach-O library")
    at, least, needs = 32, 0, []
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command == LC_BUILD_VERSION:
            (least,) = struct.unpack_from("<I", data, at + 12)
        elif command == LC_VERSION_MIN_MACOSX:
            (least,) = struct.unpack_from("<I", data, at + 8)
        elif command == LC_LOAD_DYLIB:
            (name,) = struct.unpack_from("<I", data, at + 8)
            needs.append(data[at + name : at + size].split(b"\0")[0].decode())
        at += size
    if not least:
        raise ValueError("the library does not say which macOS it needs")
    return machine, (least >> 16, least >> 8 & 255), needs


def build_wheel(engine: Path, tag: str, destination: Path) -> Path:
    """One wheel with one library, by hatch."""
    env = {**os.environ, "RWKVFLOW_WHEEL_LIBRARY": str(engine), "RWKVFLOW_WHEEL_TAG": tag}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "-w",
            folder,
            str(ROOT),
        ]
        subprocess.run(command, check=True, env=env)
        (made,) = Path(folder).glob("*.whl")
        destination.mkdir(parents=True, exist_ok=True)
        target = destination / made.name
        target.write_bytes(made.read_bytes())
    return target


def of_this_machine(work: Path, destination: Path) -> Path:
    """The wheel of this machine's platform; the engine is built below `work`, which must not be there yet."""
    target = engine_stage.TARGETS[host_platform()]
    tag = next(tag for tag, zig in TARGETS.items() if zig == target)
    engine = build_engine(target, work)
    (library,) = [path for path in (engine / "lib").iterdir() if path.suffix in (".so", ".dylib", ".dll")]
    return build_wheel(engine, fitting_tag(tag, library), destination)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="TAG", help="Tags that begin so")
    options = parser.parse_args()
    wanted = {tag: zig for tag, zig in TARGETS.items() if not options.only or tag.startswith(tuple(options.only))}
    if not wanted:
        parser.error(f"there are {', '.join(TARGETS)}")
    for tag, target in wanted.items():
        with tempfile.TemporaryDirectory() as work:
            engine = build_engine(target, Path(work) / "engine")
            (library,) = [path for path in (engine / "lib").iterdir() if path.suffix in (".so", ".dylib", ".dll")]
            tag = fitting_tag(tag, library)
            wheel = build_wheel(engine, tag, options.destination)
            print(f"{wheel} {wheel.stat().st_size} bytes, librwkv {library.stat().st_size} bytes")


if __name__ == "__main__":
    main()
