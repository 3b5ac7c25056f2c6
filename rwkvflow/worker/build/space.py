"""Whether a program that failed did so for want of disk: compilers and git do not say why by kind, and may tidy up.

The least that was free while it ran is remembered, for what it could not write may be removed again when it has ended.
Its own words are not asked: it may be anybody's.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

FULL = 1 << 20  # bytes; a disk with less is what a program failed for
POLL_S = 0.05


class DiskSpace:
    """Looks at the disks of some folders while its block runs; folders that are not there are left out."""

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.least: int | None = None  # bytes
        self._folders = [str(folder) for folder in folders]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk space", daemon=True)

    def __enter__(self) -> DiskSpace:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def full(self) -> bool:
        """Whether a disk had nothing left to speak of at some moment."""
        return self.least is not None and self.least < FULL

    def error(self) -> OSError | None:
        """That the disk was full, as the system says it, or None: for `raise … from`."""
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if self.full else None

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        for folder in self._folders:
            left = free(folder)
            if left is not None:
                self.least = left if self.least is None else min(self.least, left)


def free(folder: str | Path) -> int | None:
    """Bytes that can still be written below a folder, 0 where no file can be added; None where there is none."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    if status.f_files and not status.f_favail:
        return 0
    return status.f_bavail * status.f_frsize
