"""Faults that come at the k-th time that a process flushes, renames or links a file, or asks a store in a folder."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "killed",
    "full disk",
    "disk stays full",
    "clock jumps back",
    "clock jumps ahead",
    "remote fails",
    "remote is gone",
    "remote is full",
    "remote garbles",
]
LASTING = ("disk stays full", "remote is gone", "remote is full")  # at each time from the k-th on
LOCAL = ("killed", "full disk", "disk stays full", "clock jumps back", "clock jumps ahead")
REMOTE = ("put_file", "mv", "pipe_file", "info")
YEARS = 1e8  # seconds that a clock jumps, some three years


class Fault:
    """Patches what this process does to disks, so that a fault comes at the k-th time. Not for several at once."""

    def __init__(self, kind: Kind, point: int, tell: Callable[[str], None] = lambda words: None) -> None:
        """tell: is told what happens at which boundary, in words, the moment before."""
        self.kind, self.left, self._tell = kind, point, tell
        self._undo: list[Callable[[], None]] = []
        from fsspec.implementations.local import LocalFileSystem

        if kind in LOCAL:
            self._wrap(os, "fsync")
            self._wrap(Path, "rename")
            self._wrap(Path, "hardlink_to")
        if kind not in ("full disk", "disk stays full"):
            for name in REMOTE[:-1] if kind == "remote is full" else REMOTE:
                self._wrap(LocalFileSystem, name)

    @property
    def came(self) -> bool:
        """Whether it happened."""
        return self.left <= 0

    @property
    def lasting(self) -> bool:
        """Whether it goes on once it has come."""
        return self.kind in LASTING

    def undo(self) -> None:
        """Nothing happens any more. A clock that jumped stays where it is."""
        while self._undo:
            self._undo.pop()()

    def _wrap(self, owner: Any, name: str) -> None:
        known: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left = self.left = self.left - 1
            if left == 0 or (left < 0 and self.kind in LASTING):
                self._happen(name, args)
            return known(*args, **kwargs)

        setattr(owner, name, wrapped)
        self._undo.append(lambda: setattr(owner, name, known))

    def _happen(self, name: str, args: Sequence[Any]) -> None:
        self._tell(f"{self.kind} at {name} of {', '.join(map(str, args))}")
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10)
        if self.kind in ("full disk", "disk stays full", "remote is full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "remote fails":
            raise ConnectionResetError("cut")
        if self.kind == "remote is gone":
            raise ConnectionRefusedError("gone")
        if self.kind.startswith("clock jumps"):
            known, jump = time.time, YEARS if self.kind == "clock jumps ahead" else -YEARS
            time.time = lambda: known() + jump
        for path in (Path(str(arg)) for arg in args):
            if self.kind == "remote garbles" and path.is_file() and "/remote/" in str(path):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
