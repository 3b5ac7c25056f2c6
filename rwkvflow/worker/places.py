"""Reading and writing at a given place of an open file, from several threads: by the system, where it can."""

from __future__ import annotations

import os
import threading

#: Windows changes line ends of files that are opened without it.
BINARY = getattr(os, "O_BINARY", 0)
_moving = threading.Lock()  # where there is neither pread nor pwrite, a file has one place, which all threads move


def read_at(fd: int, count: int, offset: int) -> bytes:
    """At most `count` bytes; none at the end. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(fd, count, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill what can be filled of a buffer; how many bytes that were. Raises OSError."""
    if hasattr(os, "preadv"):  # Python before 3.13 has none on some systems: a piece of 1 MiB is copied there
        return os.preadv(fd, [buffer], offset)
    piece = read_at(fd, min(len(buffer), 1 << 20), offset)
    buffer[: len(piece)] = piece
    return len(piece)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write what can be written at once; how many bytes that were. Raises OSError."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
