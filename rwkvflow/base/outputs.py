"""Files and folders that a command writes where the user says: what may be replaced, and what never is.

Without `--force` nothing that exists is touched. With it, a file is replaced, and a folder that rwkvflow itself wrote:
its marker lists what was written, and a folder that holds anything else stays as it is. What a command reads from is
never what it writes to, whatever the paths or links that lead there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from rwkvflow.base.errors import UsageError
from rwkvflow.base.files import read_json, remove, write_json

MARKER = ".rwkvflow.json"  # in every folder that rwkvflow wrote
_WRITTEN = "written"  # key of the marker: names of the folder's files
LONGEST = 255  # units of UTF-16 in a name of Windows and macOS; Linux allows as many bytes, which are never fewer
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def is_there(path: Path) -> bool:
    """Whether a name is taken: also by a link that leads nowhere."""
    return os.path.lexists(path)


def check_output(target: Path, sources: Iterable[Path], *, force: bool, remedy: str | None = None) -> None:
    """Raises UsageError unless a command that reads `sources` (files or folders) may write `target`."""
    refuse_name(target)
    refuse_sources(target, sources)
    refuse_place(target)
    if not is_there(target):
        return
    if not force:
        raise UsageError(f"{target} exists already", remedy=remedy or "name another file, or say --force")
    mode = target.lstat().st_mode
    if stat.S_ISDIR(mode):
        _check_folder(target)
    elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise UsageError(f"{target} is neither a file nor a folder, and is not replaced", remedy="name another file")


def refuse_name(target: Path) -> None:
    """Raises UsageError for a name that is too long, before there is something to call so.

    A folder that is still to be made cannot be asked: its file system is that of the one that it will stand in.
    """
    whole = target.absolute()
    for path in (whole, *whole.parents):
        try:
            if len(path.name.encode("utf-16-le", "surrogatepass")) > 2 * LONGEST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            there = next((folder for folder in path.parents if _is_folder(folder)), path)
            os.lstat(there / path.name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UsageError(f"{target}: {error.strerror}", remedy="choose a shorter name") from error


def refuse_place(target: Path) -> None:
    """Raises UsageError where nothing can be written to `target`, before there is something to write.

    Folders on the way may still be missing; the one that is there has to be one, and has to take files.
    """
    for folder in target.absolute().parents:
        if is_there(folder):
            break
    else:
        raise UsageError(f"{target}: there is no {target.absolute().anchor}", remedy="name another place")
    if not _is_folder(folder):
        raise UsageError(f"{target}: {folder} is no folder", remedy="name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{target}: {folder} cannot be written to", remedy="name another place, or change its mode")


def _is_folder(path: Path) -> bool:
    """Whether there is such a folder; also of a name that none can have."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.stat().st_mode)
    return False


def refuse_sources(target: Path, sources: Iterable[Path]) -> None:
    """Raises UsageError where writing `target` would touch what is read: the same file, or a folder around it."""
    names = {target.resolve(), _place(target)}
    for source in sources:
        same = {source.resolve(), _place(source)}
        if names & same or _same(target, source):
            raise UsageError(
                f"{target} is what is read from" if target == source else f"{target} is {source}, which is read from",
                remedy="name another file; what is read is never written to",
            )
        if any(names & set(path.parents) for path in same):
            raise UsageError(
                f"{target} holds {source}, which is read from",
                remedy="name another folder; what is read is never replaced",
            )


def _place(path: Path) -> Path:
    """Where a name itself stands: links on the way are followed, not the last one."""
    return path.absolute().parent.resolve() / path.name


def _same(first: Path, second: Path) -> bool:
    with contextlib.suppress(OSError):
        return first.samefile(second)
    return False


def _check_folder(folder: Path) -> None:
    """Raises UsageError unless all that is in a folder was written by rwkvflow."""
    known = (read_json(folder / MARKER) or {}).get(_WRITTEN)
    if not isinstance(known, list):
        raise UsageError(
            f"{folder} is a folder that rwkvflow did not write, and is not replaced",
            remedy="name another place, or remove it yourself",
        )
    strange = sorted(set(_names(folder)) - {MARKER, *map(str, known)})
    if strange:
        raise UsageError(
            f"{folder} holds {strange[0]}, which rwkvflow did not write, and is not replaced",
            remedy="name another place, or move that file away",
        )


def is_own(folder: Path) -> bool:
    """Whether a folder has the marker of one that a command wrote."""
    return isinstance((read_json(folder / MARKER) or {}).get(_WRITTEN), list)


def _names(folder: Path) -> Iterator[str]:
    """Every file, link and empty folder below a folder, relative to it."""
    for where, folders, files in os.walk(folder):
        base = Path(where).relative_to(folder)
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        if not folders and not files and base.parts:
            yield base.as_posix()
        for name in (*files, *links):
            yield (base / name).as_posix()


def mark(folder: Path) -> None:
    """Leave the marker in a folder that was just written, so that it may be replaced later."""
    write_json(folder / MARKER, {_WRITTEN: sorted(_names(folder))})


def beside(target: Path) -> Path:
    """A name in the same folder that nobody else takes, for what is not finished yet."""
    return target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.part")


def put(partial: Path, target: Path) -> None:
    """Put a finished file or folder in its place, and remove what `check_output` let be replaced there.

    Raises UsageError where the system does not let that be: Windows keeps what any program has open.
    """
    try:
        if partial.is_dir() or (target.is_dir() and not target.is_symlink()):
            swap(partial, target)
            remove(partial)
        else:
            partial.replace(target)
    except PermissionError as error:
        raise UsageError(
            f"{target} cannot be replaced: {error.strerror}",
            remedy="end what has it open, such as `rwkvflow serve`, or name another file",
        ) from error


def write_text(target: Path, text: str, sources: Iterable[Path], *, force: bool) -> None:
    """Write a text file, whole or not at all. Raises UsageError as `check_output` does.

    With `force`, a link is followed and its file replaced; a device or pipe, such as /dev/stdout, is written to.
    """
    refuse_sources(target, sources)
    if not force:
        check_output(target, (), force=False, remedy="name another file, or remove it first")
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
        return
    target = target.resolve()
    if target.is_dir():
        raise UsageError(f"{target} is a folder", remedy="name a file")
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    partial = beside(target)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def swap(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`, and what was there (if anything) in the place of `fresh`."""
    if not is_there(target):
        fresh.rename(target)
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(AttributeError):  # a C library without renameat2
            if libc.renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
                return
    aside = fresh.with_name(fresh.name + "-old")
    target.rename(aside)
    fresh.rename(target)
    aside.rename(fresh)
