"""What wheels are for: a CPython and a platform, which need not be those of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms

from rwkvflow.base.errors import LockError

GLIBC = 28  # minor version: what wheels may need at most; Debian 10 and later have it
MACOS = (14, 0)


@dataclass(frozen=True)
class Target:
    """What wheels are for: a CPython such as "3.11" and a platform such as "linux-x86_64"."""

    python: str
    platform: str
    glibc: int = GLIBC  # minor version that is there

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise LockError(f"{self.python!r} is not a Python version such as 3.11")
        if self.platform not in ("linux-x86_64", "linux-aarch64", "macos-arm64", "macos-x86_64"):
            raise LockError(
                f"there are no wheels for {self.platform}",
                remedy="linux-x86_64, linux-aarch64, macos-arm64 and macos-x86_64 are supported",
            )

    @property
    def platforms(self) -> tuple[str, ...]:
        """Platform tags (PEP 600 and before), the newest first."""
        system, _, machine = self.platform.partition("-")
        if system == "macos":
            return tuple(mac_platforms(MACOS, machine))
        legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        oldest = 5 if machine == "x86_64" else 17
        tags: list[str] = []
        for minor in range(self.glibc, oldest - 1, -1):
            tags.append(f"manylinux_2_{minor}_{machine}")
            if minor in legacy:
                tags.append(f"{legacy[minor]}_{machine}")
        return (*tags, f"linux_{machine}")

    def tags(self) -> Iterator[Tag]:
        """All tags of wheels that run there, the best first."""
        minor = int(self.python.partition(".")[2])
        yield from cpython_tags((3, minor), [f"cp3{minor}"], self.platforms)
        yield from compatible_tags((3, minor), f"cp3{minor}", self.platforms)

    @property
    def uv_platform(self) -> str:
        """The platform as uv names it."""
        system, _, machine = self.platform.partition("-")
        if system == "linux":
            return f"{machine}-manylinux_2_{self.glibc}"
        return {"arm64": "aarch64", "x86_64": "x86_64"}[machine] + "-apple-darwin"
