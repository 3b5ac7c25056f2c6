"""A file that is read at given places into one's own buffers.

Reading (not mapping) keeps two promises: resident memory is what the caller holds and nothing more, and a file that
another process cuts short while it is read gives an error, where a mapping would kill the process (SIGBUS).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.places import BINARY, read_into


class RawFile:
    """`name` is for messages; `size` is the file's size when it was opened. Safe to use from several threads."""

    def __init__(self, path: Path | str) -> None:
        """Raises WorkerError when there is no such file, or it is not a plain file."""
        self.path = Path(path)
        self.name = self.path.name
        try:
            # O_NONBLOCK: a pipe with nobody at its other end must not stop us before we see what it is.
            flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | BINARY
            self._fd = os.open(path, flags)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkerError(f"{path}: cannot open it: {reason}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise WorkerError(f"{path}: not a plain file")
        self.size = status.st_size

    def close(self) -> None:
        """Closes it; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def into(self, buffer: memoryview, offset: int) -> None:
        """Fills a writable buffer of bytes from `offset` on. Raises WorkerError when the file ends before."""
        if self._fd < 0:
            raise WorkerError(f"{self.name}: read after it was closed")
        done = 0
        while done < len(buffer):
            try:
                count = read_into(self._fd, buffer[done:], offset + done)
            except OSError as error:
                raise WorkerError(f"{self.name}: reading failed: {error.strerror}") from error
            if count <= 0:
                raise WorkerError(f"{self.name}: the file became shorter while it was read. Copy it again.")
            done += count

    def bytes_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, which must lie inside the file."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise WorkerError(
                f"{self.name}: the file is cut short: it has {self.size} bytes. Download or copy it again."
            )
        out = bytearray(count)
        self.into(memoryview(out), offset)
        return bytes(out)


def is_there(path: Path) -> bool:
    """Whether there is such a file; also of a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
