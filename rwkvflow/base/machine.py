"""What differs from one operating system to the next, in one place: locks, the machine's memory, links of files.

Linux and macOS have fcntl. Windows has locks of its own, which are asked for by ctypes. Where there is neither, a lock
is a file that stands beside the one that is locked (filelock), and everybody waits for everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: How to lock. AT_ONCE: raise BlockingIOError rather than wait.
SHARED, EXCLUSIVE, AT_ONCE = 1, 2, 4
#: Whether folders can be opened, and files named below an open one: what removes a tree safely while others change it.
HAS_FOLDER_HANDLES = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY") and hasattr(os, "O_NOFOLLOW")
#: Whether what is open can be removed, or another file be put in its place: not on Windows.
REMOVES_OPEN_FILES = sys.platform != "win32" and fcntl is not None
_soft: dict[int, Any] = {}  # by file: its lock, where the system has none


def lock(file: IO[Any], how: int) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError where AT_ONCE is asked for and another has it."""
    if fcntl is not None:
        wanted = fcntl.LOCK_EX if how & EXCLUSIVE else fcntl.LOCK_SH
        fcntl.flock(file, wanted | (fcntl.LOCK_NB if how & AT_ONCE else 0))
    elif sys.platform == "win32":
        _lock_windows(file, how)
    else:
        _lock_softly(file, how)


def unlock(file: IO[Any]) -> None:
    """What has to be done before a locked file is closed: nothing, where the system does it."""
    if (soft := _soft.pop(id(file), None)) is not None:
        soft.release()


def _lock_softly(file: IO[Any], how: int) -> None:
    from filelock import SoftFileLock, Timeout

    held = SoftFileLock(f"{file.name}.held", thread_local=False)
    try:
        held.acquire(timeout=0 if how & AT_ONCE else -1)
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN, "locked by another", str(file.name)) from error
    _soft[id(file)] = held


def _lock_windows(file: IO[Any], how: int) -> None:  # pragma: no cover - LockFileEx, learn.microsoft.com
    import msvcrt

    class Overlapped(ctypes.Structure):
        _fields_ = [
            ("Internal", ctypes.c_void_p),
            ("InternalHigh", ctypes.c_void_p),
            ("Offset", ctypes.c_uint32),
            ("OffsetHigh", ctypes.c_uint32),
            ("hEvent", ctypes.c_void_p),
        ]

    kernel = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009 - there is none elsewhere
    kernel.LockFileEx.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(Overlapped),
    ]  # fmt: skip
    flags = (2 if how & EXCLUSIVE else 0) | (1 if how & AT_ONCE else 0)
    handle = getattr(msvcrt, "get_osfhandle")(file.fileno())  # noqa: B009
    # A byte far behind every end: what is locked can be neither read nor written by others.
    if not kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(Overlapped(Offset=0, OffsetHigh=1 << 30))):
        code = getattr(ctypes, "get_last_error")()  # noqa: B009
        if code == 33:  # ERROR_LOCK_VIOLATION
            raise BlockingIOError(errno.EAGAIN, "locked by another", str(file.name))
        raise OSError(0, f"LockFileEx: error {code}", str(file.name))


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """One process at a time in a folder: it is locked itself where the system can, else a file beside it is."""
    if fcntl is None:
        with folder.with_name(f".{folder.name}.lock").open("a") as file:
            lock(file, EXCLUSIVE)
            try:
                yield
            finally:
                unlock(file)
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def memory() -> int | None:
    """Bytes of memory that can be had: on Linux and Windows what is free, else all there is; None: unknown."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration, ValueError):
        pass
    return _memory_of_windows("available") if sys.platform == "win32" else total_memory()


def total_memory() -> int | None:
    """Bytes of memory that this machine has; None: unknown."""
    if sys.platform == "win32":
        return _memory_of_windows("total")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _memory_of_windows(what: str) -> int | None:  # pragma: no cover - GlobalMemoryStatusEx, learn.microsoft.com
    class Status(ctypes.Structure):
        _fields_ = [
            ("dwLength", ctypes.c_uint32),
            ("dwMemoryLoad", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "pages", "free", "space", "left", "more")),
        ]

    status = Status(dwLength=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009
    return int(getattr(status, what)) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def share_blocks(source: IO[bytes], target: int) -> None:
    """Let a file share another's blocks (FICLONE, linux/fs.h). Raises OSError where that cannot be."""
    if fcntl is None or not sys.platform.startswith("linux"):
        raise OSError(errno.EOPNOTSUPP, "no reflinks here")
    fcntl.ioctl(target, 0x40049409, source.fileno())
