"""Publish to a folder: complete or not at all. The new release is made beside the old one, then takes its place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base.errors import PublishError, StoreError
from rwkvflow.base.files import read_json, remove, sync, write_json
from rwkvflow.base.outputs import swap
from rwkvflow.publish.base import refuse_others
from rwkvflow.release.names import PROVENANCE, STATE
from rwkvflow.release.provenance.statement import stated_name

if TYPE_CHECKING:
    from rwkvflow.release.release import Release, ReleaseFile

CHUNK = 4 << 20


def is_intact(target: Path, key: str) -> bool:
    """Whether the folder still is what the step with this key published; looks at sizes and times, not at bytes."""
    state = read_json(target / STATE)
    if state is None or state.get("key") != key:
        return False
    try:
        return all(_stamp(target / path) == stamp for path, stamp in state["files"].items())
    except (OSError, KeyError, AttributeError):
        return False


def publish_folder(release: Release, target: Path, *, key: str, on_bytes: Callable[[int, int], None]) -> None:
    """Make `target` hold exactly this release. `on_bytes` is told bytes done and in total.

    Raises PublishError where the folder holds something that this recipe did not publish, StoreError where a file of
    the store turns out to be damaged (then the old release stays).
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise PublishError(f"{target} is not a folder", remedy="name another folder in publish.to")
    if target.is_dir() and any(target.iterdir()) and not _ours(target):
        raise PublishError(
            f"{target} holds files that rwkvflow did not publish, and publishing replaces the whole folder",
            remedy="name an empty or new folder in publish.to",
        )
    refuse_others(str(target), _name(target), release)
    with _own_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.rwkvflow-"
        with _one_at_a_time(target.parent):
            for left in target.parent.glob(prefix + "*"):
                remove(left)
            fresh = target.parent / f"{prefix}{uuid.uuid4().hex}"
            try:
                _write(release, fresh, target, key, on_bytes)
                swap(fresh, target)
            finally:
                remove(fresh)
            sync(target.parent)


def _ours(target: Path) -> bool:
    """Whether a folder is a release: published here, or downloaded."""
    from rwkvflow.release.provenance.statement import BUILD_TYPE

    if "key" in (read_json(target / STATE) or {}):
        return True
    predicate = (read_json(target / PROVENANCE) or {}).get("predicate")
    definition = predicate.get("buildDefinition") if isinstance(predicate, dict) else None
    return isinstance(definition, dict) and definition.get("buildType") == BUILD_TYPE


@contextlib.contextmanager
def _own_disk(target: Path) -> Iterator[None]:
    """A disk that is full, or may not be written, is the release's here, and not the store's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text, remedy = "no space left on its disk", "free some space there, or name another folder in publish.to"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text, remedy = f"{error.strerror} ({error.filename})", "make it writable, or name another in publish.to"
        else:
            raise
        raise PublishError(f"publishing to {target}: {text}; what was published before stays", remedy=remedy) from error


def _name(target: Path) -> str | None:
    """The name of the release in a folder, as its marker or its statement says."""
    name = (read_json(target / STATE) or {}).get("name")
    if isinstance(name, str):
        return name
    try:
        return stated_name((target / PROVENANCE).read_bytes())
    except OSError:
        return None


def _write(release: Release, fresh: Path, old: Path, key: str, on_bytes: Callable[[int, int], None]) -> None:
    total, done = sum(file.size for file in release.files), 0
    state = read_json(old / STATE) or {}
    fresh.mkdir()
    for file in release.files:
        path = fresh / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _take_over(file, old, path, state):
            _copy(file, path)
        done += file.size
        on_bytes(done, total)
    for folder in {path.parent for path in fresh.rglob("*")}:
        sync(folder)
    files = {file.path: _stamp(fresh / file.path) for file in release.files}
    digests = {file.path: file.digest for file in release.files}
    write_json(fresh / STATE, {"key": key, "name": release.name, "files": files, "digests": digests})


def _take_over(file: ReleaseFile, old: Path, path: Path, state: dict[str, object]) -> bool:
    """Link a file that the old release holds unchanged: a 14B model is not copied because a README changed."""
    digests, files = state.get("digests"), state.get("files")
    if not isinstance(digests, dict) or not isinstance(files, dict) or digests.get(file.path) != file.digest:
        return False
    try:
        if _stamp(old / file.path) != files.get(file.path):
            return False
        path.hardlink_to(old / file.path)
    except OSError:
        return False
    return True


def _copy(file: ReleaseFile, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as out:
        for chunk in _chunks(file.source):
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[out.write(view) :]
        os.fsync(out.fileno())
    if f"sha256:{digest.hexdigest()}" != file.digest:
        raise StoreError(
            f"{file.path}: its bytes in the store are not what they were",
            remedy="run `rwkvflow cache verify`, then again",
        )


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
