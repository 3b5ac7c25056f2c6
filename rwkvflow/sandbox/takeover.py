"""Takes over what a command left, which is evidence and not truth: nothing of it is followed, and all of it is bounded.

A command owns its out/ while it runs and can leave anything there: links to files of the user's, pipes that nobody
writes to, folders without end, files that grow while they are read. So every name is opened relative to its folder's
descriptor and never followed, only regular files and folders are taken, what is taken is hashed here, and modes are set
through descriptors of what was moved into a folder that is ours alone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import operator
import os
import signal
import stat
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base import machine
from rwkvflow.base.errors import StepFailed
from rwkvflow.base.hashing import SKIPPED, manifest_digest
from rwkvflow.base.text import shown_line

CHUNK = 1 << 20
DEPTH = 32  # folders in one another
ENTRIES = 50_000  # files and folders of one output
SIZE = 1 << 42  # bytes of one output: 4 TiB, more than any checkpoint has
NAME_BYTES = 255
PATH_BYTES = 1024
HOLE = 1 << 30  # bytes that a file may be longer than what it occupies; file systems that compress have some
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_FORMATTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories that change how a name reads, or are no text
_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY")  # Windows, where nothing is taken over, has none
_OPEN = functools.reduce(operator.or_, (getattr(os, name, 0) for name in _FLAGS), os.O_RDONLY)

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Taken:
    """An output that is ours now: its digest as the store reckons it, and bytes over all files."""

    path: Path
    digest: str
    size: int


@dataclass
class _Budget:
    """What one output may still have."""

    entries: int = ENTRIES
    size: int = SIZE


def take(
    workdir: Path,
    name: str,
    target: Path,
    *,
    inputs: Collection[Identity] = (),
    largest: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Taken:
    """Move workdir/out/<name> to `target`, whose folder is ours and on the same file system.

    `inputs` are files that no output may be another name of, `largest` bounds the bytes; `check` is called for every
    piece that is read and may raise. Raises StepFailed that names what is refused and why; a FileNotFoundError where
    the command left nothing of this name.
    """
    what = f"out/{name}"
    budget = _Budget(size=min(SIZE, largest) if largest else SIZE)
    taking = _Taking(frozenset(inputs), budget, check)
    _check_name(name, what)
    with contextlib.ExitStack() as stack:
        above = _folder(stack, workdir, None, str(workdir))
        out = _folder(stack, "out", above, "out")
        home = _folder(stack, target.parent, None, str(target.parent))
        status = os.stat(name, dir_fd=out, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            rows: list[tuple[str, str, bool]] = []
            size = taking.tree(out, name, home, target.name, what, "", rows, 1)
            return Taken(target, manifest_digest(rows), size)
        digest, size, _ = taking.file(out, name, home, target.name, what)
        return Taken(target, digest, size)


class _Taking:
    def __init__(self, inputs: frozenset[Identity], budget: _Budget, check: Callable[[], None]) -> None:
        self.inputs, self.budget, self.check = inputs, budget, check

    def tree(
        self,
        source: int,
        name: str,
        home: int,
        new_name: str,
        what: str,
        inner: str,
        rows: list[tuple[str, str, bool]],
        depth: int,
    ) -> int:
        """One folder: made anew in `home`, its files moved; returns their bytes and appends their manifest rows."""
        if depth > DEPTH:
            raise _refused(what, f"has more than {DEPTH} folders in one another")
        size = 0
        with contextlib.ExitStack() as here:
            folder = _folder(here, name, source, what)
            with contextlib.suppress(PermissionError):
                os.fchmod(folder, 0o700)  # files can be moved out of it
            os.mkdir(new_name, 0o755, dir_fd=home)
            made = _folder(here, new_name, home, what)
            for entry in sorted(self._names(folder, what)):
                place = f"{what}/{entry}"
                path = f"{inner}/{entry}" if inner else entry
                _check_name(entry, place)
                if len(path.encode()) > PATH_BYTES:
                    raise _refused(what, f"has a path of more than {PATH_BYTES} bytes")
                if entry in SKIPPED:
                    continue  # no digest counts it, so nobody could tell what it holds
                status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    size += self.tree(folder, entry, made, entry, place, path, rows, depth + 1)
                else:
                    digest, count, executable = self.file(folder, entry, made, entry, place)
                    rows.append((path, digest, executable))
                    size += count
        return size

    def _names(self, folder: int, what: str) -> list[str]:
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self.budget.entries -= 1
                if self.budget.entries < 0:
                    raise _refused(what, f"has more than {ENTRIES} files and folders")
                names.append(entry.name)
        return names

    def file(self, source: int, name: str, home: int, new_name: str, what: str) -> tuple[str, int, bool]:
        """One regular file: digest, bytes, whether its owner may execute it."""
        _check_kind(os.stat(name, dir_fd=source, follow_symlinks=False), what)  # before the open: it may wait or act
        try:
            handle = os.open(name, _OPEN, dir_fd=source)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise _refused(what, "is a symbolic link") from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _refused(what, "cannot be read by who runs rwkvflow") from None
            raise
        with os.fdopen(handle, "rb", buffering=0) as file:
            status = os.fstat(handle)
            self._check(status, what)
            if not _settled(handle):
                _copy(file.fileno(), home, new_name, what, self.budget.size, self.check)
                os.unlink(name, dir_fd=source)
            else:
                os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=home)
            own = os.open(new_name, _OPEN, dir_fd=home)
        with os.fdopen(own, "rb", buffering=0) as file:
            found = os.fstat(own)
            self._check(found, what)
            if os.getuid() == 0 and found.st_uid != 0:
                os.fchown(own, 0, os.getgid())
            executable = bool(status.st_mode & 0o100)
            os.fchmod(own, 0o755 if executable else 0o644)
            digest, size = _digest(own, what, found.st_size, self.check)
        self.budget.size -= size
        return digest, size, executable

    def _check(self, status: os.stat_result, what: str) -> None:
        _check_kind(status, what)
        if (status.st_dev, status.st_ino) in self.inputs:
            raise _refused(what, "is a hard link to an input")
        if status.st_nlink != 1:
            raise _refused(what, "has a second name (a hard link)", "copy the file instead of linking it")
        if status.st_size > self.budget.size:
            raise _refused(what, f"makes the output larger than {self.budget.size} bytes")
        occupied = status.st_blocks * 512
        if status.st_size - occupied > HOLE and occupied * 8 < status.st_size:
            raise _refused(what, f"is a hole: {status.st_size} bytes long, of which {occupied} are written")


def identities(path: Path) -> set[Identity]:
    """Device and inode of a file, or of all files below a folder."""
    found = set()
    todo = [path]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            status = one.stat()
            if stat.S_ISDIR(status.st_mode):
                todo += [Path(entry.path) for entry in os.scandir(one) if not entry.is_symlink()]
            else:
                found.add((status.st_dev, status.st_ino))
    return found


def _folder(stack: contextlib.ExitStack, name: str | Path, above: int | None, what: str) -> int:
    """Descriptor of a folder that is no link, open until the stack is closed."""
    try:
        handle = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
            raise _refused(what, "is a link or a file, and no folder") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _refused(what, "cannot be read by who runs rwkvflow") from None
        raise
    stack.callback(os.close, handle)
    return handle


def _check_name(name: str, what: str) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise _refused(what, "has a name that is no UTF-8") from None
    if name in ("", ".", "..") or "/" in name or len(raw) > NAME_BYTES:
        raise _refused(what, "has no proper name")
    if any(unicodedata.category(letter) in _FORMATTING for letter in name):
        raise _refused(what, "has a name with control characters")


def _check_kind(status: os.stat_result, what: str) -> None:
    for test, words in _KINDS:
        if test(status.st_mode):
            raise _refused(what, f"is {words}")
    if not stat.S_ISREG(status.st_mode):
        raise _refused(what, "is no regular file")


def _refused(what: str, why: str, remedy: str | None = None) -> StepFailed:
    return StepFailed(
        f"{shown_line(what)[:200]} {why}; it is not taken",
        remedy=remedy or "outputs are regular files and folders of them; see SECURITY.md",
    )


def _settled(handle: int) -> bool:
    """Whether nobody has the file open for writing, as far as the kernel tells: asks for a lease, and gives it back."""
    fcntl = machine.fcntl
    setlease, setsig = getattr(fcntl, "F_SETLEASE", None), getattr(fcntl, "F_SETSIG", 10)
    if setlease is None:
        return False
    try:
        fcntl.fcntl(handle, setsig, signal.SIGURG)  # else a break of the lease would end this process
        fcntl.fcntl(handle, setlease, fcntl.F_RDLCK)
        fcntl.fcntl(handle, setlease, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _copy(handle: int, home: int, name: str, what: str, largest: int, check: Callable[[], None]) -> None:
    """A copy that nobody else holds, of at most `largest` bytes."""
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
    with os.fdopen(target, "wb", buffering=0) as file:
        count = 0
        while piece := os.read(handle, CHUNK):
            check()
            count += len(piece)
            if count > largest:
                raise _refused(what, "grows while it is read")
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        if os.fstat(handle).st_mode & 0o100:
            os.fchmod(target, 0o700)


def _digest(handle: int, what: str, size: int, check: Callable[[], None]) -> tuple[str, int]:
    """sha256 and length; raises StepFailed where the length is not `size`."""
    digest, count = hashlib.sha256(), 0
    while piece := os.read(handle, CHUNK):
        check()
        count += len(piece)
        if count > size:
            break
        digest.update(piece)
    if count != size:
        raise _refused(what, "changed while it was read")
    return "sha256:" + digest.hexdigest(), count
