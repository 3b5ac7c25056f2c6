"""Limits without a kernel's help: watch what a command holds and writes, and say when it is too much."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from rwkvflow.sandbox.isolation.disk import DiskLimit

POLL_S = 0.1
SHARE = 200  # of the time, one part may go into looking for processes
LONGEST_S = 2.0  # between two walks, on the busiest machine
_PAGES_OF_ITS_OWN = (b"RssAnon:", b"RssShmem:")


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
        family = Family(self.session)
        if self._disk is not None:
            self._disk.pids = family.pids
        while not self._done.wait(POLL_S):
            if self._limit is not None:
                used = family.held()
                self.peak = max(self.peak, used)
                self.exceeded = used > self._limit
            if self.exceeded or (self._disk is not None and self._disk.poll()):
                self.set()
                return


class Family:
    """The processes of a session and all that descend from its first, whatever session they made for themselves.

    What they hold is asked of each at every look. Who they are takes a walk over all processes of the machine, which
    is made no more often than that it takes a two-hundredth of the time: waiting for a command must not cost a core.
    """

    def __init__(self, session: int) -> None:
        self.session = session
        self._known: set[int] = {session}
        self._next = 0.0

    def pids(self) -> set[int]:
        """Those that are known; they are looked for anew now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._known = members(self.session)
            ended = time.monotonic()
            self._next = ended + min(SHARE * (ended - now), LONGEST_S)
        return self._known

    def held(self) -> int:
        """Bytes of memory that are not pages of files. 0 without /proc."""
        total = 0
        for pid in self.pids():
            for line in _read(f"/proc/{pid}/status").splitlines():
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
    """(pid, its parent, its session) of all processes; none without /proc."""
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each is most of what looking costs
            if name.isdigit() and len(words := _read(f"/proc/{name}/stat").rpartition(b")")[2].split()) > 3:
                yield int(name), int(words[1]), int(words[3])


def _read(path: str) -> bytes:
    """A small file of the kernel's; nothing of a process that has ended."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(handle, 8192)
    except OSError:
        return b""
    finally:
        os.close(handle)
