"""Files as rwkvflow handles them: durable writes, locks between processes, and clear errors for full disks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rwkvflow.base.errors import StoreError


@contextlib.contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Turn a full disk or missing permission into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"{what}: no space left on the disk of the store",
                remedy="free some space, `rwkvflow cache gc`, or name another place with RWKVFLOW_STORE; "
                "what is finished stays, and the next run goes on from there",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{what}: {error.strerror} ({error.filename})",
                remedy="make the store's folder writable, or name another place with RWKVFLOW_STORE",
            ) from error
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON under a temporary name, flush it to disk, rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with clear_errors(f"writing {path.name}"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(value, file, sort_keys=True, ensure_ascii=False)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder, read-only ones included; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        for folder in [path, *(item for item in path.rglob("*") if item.is_dir() and not item.is_symlink())]:
            with contextlib.suppress(OSError):
                folder.chmod(stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[IO[str]]:
    """flock on a file that may be unlinked by its last holder: re-opened until name and handle agree."""
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, how)
            try:
                same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
        except BaseException:
            file.close()
            raise
        if same:
            break
        file.close()
    try:
        yield file
    finally:
        file.close()
