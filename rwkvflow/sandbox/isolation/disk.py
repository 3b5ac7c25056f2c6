"""A disk limit without a kernel's help: look now and then at what a command's folders occupy."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

POLL_S = 0.5
SHARE = 100  # at most a hundredth of the time is spent on looking
DEEPEST = 64  # folders in one another that are looked into; no output may be so deep
ENTRY_BYTES = 512  # that a name is counted with, so that empty files are not free


class DiskLimit:
    """`exceeded` becomes the bytes that were seen, once they were more than `limit`. None: nothing is limited.

    It is polled, so a command that writes fast is over the limit by what it writes in one interval.
    """

    def __init__(self, limit: int | None, folders: Sequence[Path]) -> None:
        self.limit = limit
        self.exceeded: int | None = None
        self._folders = folders
        self._next = 0.0

    def poll(self) -> bool:
        """Look, where it is time to; True once the limit was exceeded."""
        now = time.monotonic()
        if self.limit is None or self.exceeded is not None or now < self._next:
            return self.exceeded is not None
        used = sum(occupied(folder) for folder in self._folders)
        self._next = time.monotonic() + max(POLL_S, SHARE * (time.monotonic() - now))
        if used > self.limit:
            self.exceeded = used
        return self.exceeded is not None


def occupied(folder: Path) -> int:
    """Bytes on the disk below a folder, names included; no link is followed, and what vanishes is left out."""
    total = 0
    stack: list[tuple[int, list[str]]] = []
    try:
        with contextlib.suppress(OSError):
            stack.append(_names(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)))
        while stack:
            above, names = stack[-1]
            if not names:
                os.close(above)
                stack.pop()
                continue
            name = names.pop()
            total += ENTRY_BYTES
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=above, follow_symlinks=False)
                total += status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode) and len(stack) < DEEPEST:
                    stack.append(_names(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)))
    finally:
        for handle, _ in stack:
            os.close(handle)
    return total


def _names(handle: int) -> tuple[int, list[str]]:
    try:
        return handle, os.listdir(handle)
    except OSError:
        return handle, []
