"""The walls of the host sandbox: what of them this kernel has, and what a command may reach behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rwkvflow.sandbox.isolation import launch

PROBE_S = 20
NETWORK_LANDLOCK = 4  # the interface of Landlock that knows TCP ports
LAUNCHER = Path(launch.__file__)
# Programs, libraries and what they look up; nothing below /home, /root, /tmp, /var or /run.
SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd", "/etc/group",
    "/etc/nsswitch.conf", "/etc/hosts", "/etc/os-release", "/etc/debian_version", "/etc/ssl/openssl.cnf",
    "/etc/alternatives", "/etc/mime.types", "/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Walls:
    """What holds on this machine.

    namespaces  no network, no other processes, and nothing that a command started outlives it
    readonly    every file system is read-only but for out/ and scratch
    landlock    version of the kernel's interface, 0 for none: only what a command needs can be opened
    """

    namespaces: bool = False
    readonly: bool = False
    landlock: int = 0

    @property
    def files(self) -> bool:
        """Whether the user's files are out of reach."""
        return self.landlock > 0

    @property
    def network(self) -> bool:
        """Whether the network is out of reach (by Landlock alone: TCP)."""
        return self.namespaces or self.landlock >= NETWORK_LANDLOCK

    @property
    def whole(self) -> bool:
        """Whether code that nobody vouches for can be kept in."""
        return self.files and self.network

    def __str__(self) -> str:
        """In words, for reports."""
        if not (self.files or self.network):
            return "no isolation: commands run as you, with your files and network in reach"
        files = f"your files are out of reach (Landlock {self.landlock})" if self.files else "your files are in reach"
        if self.namespaces:
            network = "no network, no other processes (namespaces)"
        else:
            network = "no TCP (Landlock)" if self.network else "the network is in reach"
        return f"walls of the kernel: {files}; {network}"


@cache
def walls() -> Walls:
    """Tried once, in a process of its own. None elsewhere than on Linux."""
    if sys.platform != "linux":
        return Walls()
    try:
        done = subprocess.run(
            [*_launcher(), "--probe"], capture_output=True, timeout=PROBE_S, check=True, stdin=subprocess.DEVNULL
        )
        found = json.loads(done.stdout)
        return Walls(bool(found["namespaces"]), bool(found["readonly"]), int(found["landlock"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return Walls()


def behind(here: Walls, argv: list[str], *, read: Iterable[Path], write: Iterable[Path]) -> list[str]:
    """The same command behind the walls that hold; it does not start where one of them cannot be put up.

    Where there are none, it still has no capabilities: root's would open the memory of the worker to its commands.
    """
    if sys.platform != "linux":
        return argv
    spec: dict[str, Any] = {
        "namespaces": here.namespaces,
        "readonly": here.namespaces and here.readonly,
        "landlock": here.files,
        "read": [*SYSTEM, *(str(path) for path in read)],
        "write": [*DEVICES, *(str(path) for path in write)],
    }
    return [*_launcher(), json.dumps(spec), "--", *argv]


def of_python(interpreter: Path) -> list[Path]:
    """What an interpreter reads of itself; never a whole home, or what lies above one."""
    real = Path(os.path.realpath(interpreter))
    prefix = real.parent.parent
    settings = [
        path for path in [Path("/etc") / real.name] if path.is_dir()
    ]  # Debian's sitecustomize.py is a link there
    if prefix != prefix.parent and not Path.home().resolve().is_relative_to(prefix):
        return [prefix, *settings]
    return [real, *prefix.glob("lib/python3*"), *prefix.glob("lib/libpython3*"), *settings]


def _launcher() -> list[str]:
    return [sys.executable, "-I", "-S", str(LAUNCHER)]
