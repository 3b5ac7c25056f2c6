"""Limits without a kernel's help: watch what a command holds and writes, and say when it is too much."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from rwkvflow.sandbox.isolation.disk import DiskLimit

POLL_S = 0.1
_PAGES_OF_ITS_OWN = ("RssAnon:", "RssShmem:")


class MemoryLimit(threading.Event):
    """Set when the caller's event is set, or when the processes started with `remember` hold more than `limit` bytes
    of memory, or when `disk` says so.

    Counted is anonymous and shared memory of every process of the session and of all that
    descend from its first, like the kernel's OOM killer does; pages
    of mapped files are not, since they can be dropped at any time. Without /proc nothing is limited.
    """

    def __init__(self, limit: int | None, cancel: threading.Event, disk: DiskLimit | None = None) -> None:
        super().__init__()
        self.exceeded = False
        self.peak = 0
        self._limit, self._cancel, self._disk = limit, cancel, disk
        self._read, self._write = os.pipe()
        os.set_inheritable(self._write, False)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.session: int | None = None

    def remember(self) -> None:
        """For process.run's `preexec`: tells the parent the new session's id. Runs between fork and exec."""
        os.write(self._write, os.getpid().to_bytes(8, "little"))

    def is_set(self) -> bool:
        """Whether the processes must end."""
        return super().is_set() or self._cancel.is_set()

    def __enter__(self) -> MemoryLimit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        os.close(self._write)  # wakes the thread where nothing was started
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        piece = os.read(self._read, 8)
        if len(piece) < 8:
            return
        self.session = int.from_bytes(piece, "little")
        while not self._done.wait(POLL_S):
            if self._limit is not None:
                used = held(self.session)
                self.peak = max(self.peak, used)
                self.exceeded = used > self._limit
            if self.exceeded or (self._disk is not None and self._disk.poll()):
                self.set()
                return


def held(session: int) -> int:
    """Bytes of memory that are not pages of files, over all processes of a session and all that descend from its
    first process, whatever session they made for themselves. 0 without /proc.
    """
    total = 0
    for pid in members(session):
        try:
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            continue  # ended meanwhile
        for line in status.splitlines():
            if line.startswith(_PAGES_OF_ITS_OWN):
                total += int(line.split()[1]) * 1024
    return total


def members(session: int) -> set[int]:
    """The processes of a session and the descendants of its first, as far as their parents live."""
    parents: dict[int, int] = {}
    found = {session}
    for pid, parent, own in _processes():
        parents[pid] = parent
        if own == session:
            found.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return found


def _processes() -> Iterator[tuple[int, int, int]]:
    """(pid, its parent, its session) of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            yield int(folder.name), int(words[1]), int(words[3])
        except (OSError, ValueError, IndexError):
            continue  # ended meanwhile
