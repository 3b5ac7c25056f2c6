"""Runs static Linux programs on an x86-64 processor that Bochs emulates: one with AVX-512, which qemu does not know.

No operating system is started: the ROM is bare_machine.c, which answers the program's system calls, and the disk holds
the program and its files. So a run starts within a second.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.engine import emulators

HERE = Path(__file__).resolve().parent
PACKAGES = "bochs bochs-term"  # Debian's
SECTOR = 512
CYLINDER = 16 * 63 * SECTOR  # Bochs counts whole ones

# Time is of no use here: a slow clock makes the serial port fast. What would wait for a person or a network is off.
CONFIGURATION = """\
cpu: model={cpu}, count=1, ips=1000000, reset_on_triple_fault=0
clock: sync=none
megs: 256
romimage: file={folder}/rom
pci: enabled=0
floppya: type=none
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={folder}/disk, mode=flat
ata1: enabled=0
com1: enabled=1, mode=file, dev={folder}/output
plugin_ctrl: biosdev=0, extfpuirq=0, gameport=0, iodebug=0, parallel=0, speaker=0
display_library: term
mouse: enabled=0
log: {folder}/log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""


def rom(scratch: Path) -> bytes:
    """bare_machine.c, compiled by zig."""
    source, program, image = HERE / "bare_machine.c", scratch / "bare_machine.elf", scratch / "bare_machine.bin"
    flags = ["-target", "x86_64-freestanding", "-mcpu=x86_64", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-s"]
    # Of its own registers it uses none that the program has something in.
    flags += ["-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-sanitize=all", "-mgeneral-regs-only"]
    flags += ["-mno-red-zone", "-nostdlib", "-static", f"-Wl,-T,{HERE / 'bare_machine.ld'}", "-Wl,--build-id=none"]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(scratch / "zig"), "ZIG_LOCAL_CACHE_DIR": str(scratch / "zig-local")}
    for command in (["cc", *flags, source, "-o", program], ["objcopy", "-O", "binary", program, image]):
        call = [sys.executable, "-m", "ziglang", *map(str, command)]
        done = subprocess.run(call, env={**os.environ, **caches}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return image.read_bytes()[-65536:]  # that of variables is no part of it


def disk(program: Path, arguments: Sequence[str], files: Sequence[Path], environment: Mapping[str, str]) -> bytes:
    """struct Job of bare_machine.c. The program finds the files by their names, without a folder."""
    stored = [program, *files]
    words = [program.name, *arguments, *(f"{name}={value}" for name, value in environment.items())]
    text = b"".join(word.encode() + b"\0" for word in words)
    at = 32 + 64 * len(stored) + len(text)
    table, data = b"", b""
    for path in stored:
        assert len(path.name) < 48
        content = path.read_bytes()
        data += bytes(-(at + len(data)) % 64)
        table += struct.pack("<QQ48s", at + len(data), len(content), path.name.encode())
        data += content
    size = at + len(data)
    head = struct.pack("<QQQQ", -(-size // SECTOR), len(stored), len(arguments) + 1, len(environment))
    whole = head + table + text + data
    return whole + bytes(-len(whole) % CYLINDER)


def run(
    image: bytes,
    program: Path,
    arguments: Sequence[str],
    files: Sequence[Path],
    cpu: str,
    scratch: Path,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """The program's exit code, and all that it wrote: to its output, its errors and any file, in the order of writing.

    `image` is what rom() gave, `cpu` one of `bochs --help cpu`.
    """
    bochs = emulators.find(PACKAGES, "bochs")
    scratch.mkdir(parents=True, exist_ok=True)
    output, log = scratch / "output", scratch / "log"
    output.write_bytes(b"")
    (scratch / "rom").write_bytes(image)
    (scratch / "disk").write_bytes(disk(program, arguments, files, environment or {}))
    (scratch / "bochsrc").write_text(CONFIGURATION.format(cpu=cpu, folder=scratch), encoding="utf-8")
    done = subprocess.run(
        [bochs, "-q", "-f", scratch / "bochsrc"],
        input="c\n",  # continue: Debian's Bochs has its debugger built in, which waits
        env={**os.environ, "TERM": "linux"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    wrote, _, last = output.read_bytes().rpartition(b"\n")
    if not last.isdigit():  # a fault, or a call that bare_machine.c does not know
        pytest.fail(f"{last!r}\n{wrote[-300:]!r}\n{done.stdout[-1000:]}\n{log.read_text()[-2000:]}")
    return int(last), wrote
