"""Writes a Layout to a file and hashes it on the way."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from rwkvflow.worker.places import BINARY, read_at, write_at
from rwkvflow.worker.write.layout import Layout, Slot, Written

PIECE = 1 << 20  # bytes read back at a time, where a file does not come in its own order
EARLY = 16 << 20  # bytes after which the system is asked to begin writing to the disk


class FileWriter:
    """A Writer of one file. SHA-256 needs the bytes in order: what comes early waits on the disk and is read again."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Creates or empties the file. Raises OSError."""
        self.slots: Mapping[str, tuple[Slot, ...]] = layout.slots
        self.size = layout.size
        self.remarks = layout.remarks
        self._path = path
        self._literals = dict(layout.literals)
        self._waiting: dict[int, int] = {}  # offset -> length, written but not hashed
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._unflushed = 0  # about: threads may add to it at once
        self._writing = threading.Lock()  # the system lets in one writer at a time, and others would wait spinning
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0) | BINARY
        self._fd = os.open(path, flags, 0o644)

    def write(self, slot: Slot, start: int, data: memoryview) -> None:
        """Put bytes of a slot in their place."""
        if start + len(data) > slot.size:
            raise ValueError(f"{start + len(data)} bytes for a slot of {slot.size}")
        self._write(slot.offset + start, data)
        self._unflushed += len(data)
        if self._unflushed >= EARLY:
            self._unflushed = 0
            _to_disk(self._fd, self._hashed)

    def put(self, slot: Slot, start: int, data: memoryview) -> None:
        """Take bytes that have been written, for the digests."""
        offset = slot.offset + start
        self._literals_here()
        if offset == self._hashed:
            self._take(data)
        else:
            self._waiting[offset] = len(data)
        self._catch_up()

    @property
    def complete(self) -> bool:
        """Whether every byte is there, so that nothing but `close` is left."""
        return self._hashed == self.size

    def close(self) -> Written:
        """Finish the artifact."""
        self._catch_up()
        if self._hashed != self.size:
            raise ValueError(f"{self._path.name}: complete up to byte {self._hashed} of {self.size}")
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        return Written(self.size, self._hash.hexdigest())

    def abort(self) -> None:
        """Remove what has been written."""
        try:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._path.unlink(missing_ok=True)
        except OSError:
            pass  # the failure that led here is the one to report

    def _write(self, offset: int, data: memoryview | bytes) -> None:
        view = memoryview(data)
        with self._writing:
            while len(view):
                written = write_at(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def _take(self, data: memoryview | bytes) -> None:
        self._hash.update(data)
        self._hashed += len(data)

    def _literals_here(self) -> None:
        while (planned := self._literals.pop(self._hashed, None)) is not None:
            literal = self._literal(self._hashed, planned)
            self._write(self._hashed, literal)
            self._take(literal)

    def _literal(self, offset: int, planned: bytes) -> bytes:
        """What to write instead of a literal, of the same length: for what depends on all that stands before it."""
        return planned

    def _catch_up(self) -> None:
        """Take what stands next in the file, until something is missing."""
        while True:
            self._literals_here()
            left = self._waiting.pop(self._hashed, 0)
            if not left:
                return
            while left:
                data = read_at(self._fd, min(left, PIECE), self._hashed)
                if not data:
                    raise OSError(f"{self._path.name} became shorter while it was written")
                self._take(data)
                left -= len(data)


def _to_disk(fd: int, end: int) -> None:
    """Have the system write what stands before `end`, and forget what is written: a hint.

    So the fsync at the end has little left to do, and artifacts do not push everything else out of the page cache. New
    pages for all of them would cost more than the encoding, above all in a virtual machine.
    """
    if end and hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(fd, 0, end, os.POSIX_FADV_DONTNEED)
