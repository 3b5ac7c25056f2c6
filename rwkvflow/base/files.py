"""Files as rwkvflow handles them: durable writes, locks between processes, and clear errors for full disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rwkvflow.base import machine
from rwkvflow.base.errors import StoreError


@contextlib.contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Turn a full disk or missing permission into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise no_space(what) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{what}: {error.strerror} ({error.filename})",
                remedy="make the store's folder writable, or name another place with RWKVFLOW_STORE",
            ) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether a disk, or what somebody may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def takes_nothing(error: BaseException) -> bool:
    """Whether a disk here is full, or cannot be written to: no fault of what was to be written."""
    return is_full(error) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def no_space(what: str) -> StoreError:
    """A full disk of the store, in words."""
    return StoreError(
        f"{what}: no space left on the disk of the store",
        remedy="free some space, `rwkvflow cache gc`, or name another place with RWKVFLOW_STORE; "
        "what is finished stays, and the next run goes on from there",
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON under a temporary name, flush it to disk, rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with clear_errors(f"writing {path.name}"):
        try:
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # as JSON has it
                json.dump(value, file, sort_keys=True, ensure_ascii=False)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk, where the system lets one ask for that."""
    if not machine.HAS_FOLDER_HANDLES:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder, read-only ones included; nothing happens where there is none.

    No link is followed, and neither the depth of a folder nor the length of its paths has a bound: a folder inside is
    moved up until it stands at the top, and emptied there.
    """
    if not machine.HAS_FOLDER_HANDLES:  # Windows
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_again)
        else:
            _unlink(path)
        return
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except PermissionError:
        path.chmod(stat.S_IRWXU)
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a file, a link, or nothing
        with contextlib.suppress(NotADirectoryError):  # nor anything that could hold it
            path.unlink(missing_ok=True)
        return
    try:
        with contextlib.suppress(OSError):
            os.fchmod(top, stat.S_IRWXU)
        _clear(top, top)
        while found := [name for name in os.listdir(top) if name.startswith(_LIFTED)]:  # noqa: PTH208 - a descriptor
            for name in found:
                with _opened(name, top) as inner:
                    if inner is not None:
                        _clear(inner, top)
                try:
                    os.rmdir(name, dir_fd=top)
                except OSError:
                    return  # what cannot be removed stays, as with shutil.rmtree(ignore_errors=True)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        path.rmdir()


def _unlink(path: Path) -> None:
    """Windows does not remove files that are read-only."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        path.chmod(stat.S_IWRITE)
        path.unlink(missing_ok=True)


def _again(what: object, path: str, error: object) -> None:
    """What shutil.rmtree could not do: once more without the read-only mark. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        _unlink(Path(path))


_LIFTED = ".removing-"


def _clear(folder: int, top: int) -> None:
    """Unlink the files of a folder, and move its folders into `top` under new names; both are descriptors."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with contextlib.suppress(OSError):
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif not (folder == top and name.startswith(_LIFTED)):
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=folder)
                    continue
                with _opened(name, folder) as inner:  # a folder that moves must be writable: its ".." changes
                    if inner is not None:
                        os.rename(name, f"{_LIFTED}{uuid.uuid4().hex}", src_dir_fd=folder, dst_dir_fd=top)


@contextlib.contextmanager
def _opened(name: str, above: int) -> Iterator[int | None]:
    """Descriptor of a folder that may be written to; None where that cannot be had."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        try:
            handle = os.open(name, flags, dir_fd=above)
        except PermissionError:
            os.chmod(name, stat.S_IRWXU, dir_fd=above)
            handle = os.open(name, flags, dir_fd=above)
    except OSError:
        yield None
        return
    try:
        with contextlib.suppress(OSError):
            os.fchmod(handle, stat.S_IRWXU)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, how: int, *, leave: bool = True) -> Iterator[IO[str]]:
    """A lock (machine.lock) on a file that its holders may unlink: re-opened until name and handle agree.

    Without `leave` the file is gone afterwards. Raises BlockingIOError where another has it and `how` is AT_ONCE.
    """
    while True:
        file = path.open("a")
        try:
            machine.lock(file, how)
            try:
                same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
        except BaseException:
            machine.unlock(file)
            file.close()
            raise
        if same:
            break
        machine.unlock(file)
        file.close()
    try:
        yield file
    finally:
        if not leave and machine.REMOVES_OPEN_FILES:  # while nobody else can have it, so that none loses theirs
            path.unlink(missing_ok=True)
        machine.unlock(file)
        file.close()
        if not leave and not machine.REMOVES_OPEN_FILES:
            with contextlib.suppress(PermissionError):  # of whoever waits for it: theirs to remove
                path.unlink(missing_ok=True)
