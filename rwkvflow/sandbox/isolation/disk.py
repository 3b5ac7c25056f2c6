"""A disk limit without a kernel's help: look now and then at what a command's folders occupy."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

POLL_S = 0.5
SHARE = 100  # at most a hundredth of the time is spent on looking
DEEPEST = 64  # folders in one another that are looked into; no output may be so deep
TOO_DEEP = -1  # in the place of bytes: there are folders so deep that what they hold is not counted
ENTRY_BYTES = 512  # that a name is counted with, so that empty files are not free


class DiskLimit:
    """`exceeded` becomes the bytes that were seen, once they were more than `limit`. None: nothing is limited.

    It is polled, so a command that writes fast is over the limit by what it writes in one interval. Folders too deep to
    be counted are over it, or they would be where to hide; `exceeded` is then TOO_DEEP. `pids` are the processes whose
    files without a name count as well.
    """

    def __init__(self, limit: int | None, folders: Sequence[Path]) -> None:
        self.limit = limit
        self.exceeded: int | None = None
        self.pids: Callable[[], Iterable[int]] = tuple
        self._folders = folders
        self._next = 0.0

    def poll(self) -> bool:
        """Look, where it is time to; True once the limit was exceeded."""
        now = time.monotonic()
        if self.limit is None or self.exceeded is not None or now < self._next:
            return self.exceeded is not None
        found = [occupied(folder) for folder in self._folders]
        used = sum(found) + nameless(self.pids())
        self._next = time.monotonic() + max(POLL_S, SHARE * (time.monotonic() - now))
        if TOO_DEEP in found:
            self.exceeded = TOO_DEEP
        elif used > self.limit:
            self.exceeded = used
        return self.exceeded is not None


def occupied(folder: Path) -> int:
    """Bytes on the disk below a folder, names included; no link is followed, and what vanishes is left out.

    TOO_DEEP where there are folders more than DEEPEST in one another.
    """
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
                if stat.S_ISDIR(status.st_mode):
                    if len(stack) >= DEEPEST:
                        return TOO_DEEP
                    stack.append(_names(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)))
    finally:
        for handle, _ in stack:
            os.close(handle)
    return total


def nameless(pids: Iterable[int]) -> int:
    """Bytes on the disk of files that processes have open and that have no name any more. 0 without /proc."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208 - as for processes, see memory.py
                with contextlib.suppress(OSError):
                    status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - see above
                    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _names(handle: int) -> tuple[int, list[str]]:
    try:
        return handle, os.listdir(handle)
    except OSError:
        return handle, []
