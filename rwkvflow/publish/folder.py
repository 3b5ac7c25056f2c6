"""Publish to a folder: complete or not at all. The new release is made beside the old one, then takes its place.

What else stands in the folder, a user's notes or a repository, goes along. Only what an earlier release put there, as
its marker or its list of checksums says, is replaced or removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rwkvflow.base import machine
from rwkvflow.base.errors import PublishError, StoreError
from rwkvflow.base.files import is_full, read_json, remove, sync, write_json
from rwkvflow.base.outputs import swap
from rwkvflow.base.text import bytes_text
from rwkvflow.publish.base import refuse_others
from rwkvflow.release.names import PROVENANCE, SIGNATURE, STATE, SUMS
from rwkvflow.release.provenance.statement import stated_name
from rwkvflow.release.sums import parse_sums

if TYPE_CHECKING:
    from rwkvflow.release.release import Release, ReleaseFile

CHUNK = 4 << 20
_LARGE = 1 << 20  # bytes of a file that is worth a word


def is_intact(target: Path, key: str) -> bool:
    """Whether the folder still is what the step with this key published; looks at sizes and times, not at bytes."""
    state = read_json(target / STATE)
    if state is None or state.get("key") != key:
        return False
    try:
        return all(_stamp(target / path) == stamp for path, stamp in state["files"].items())
    except (OSError, KeyError, AttributeError):
        return False


def publish_folder(
    release: Release,
    target: Path,
    *,
    key: str,
    on_bytes: Callable[[int, int], None],
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Make `target` hold exactly this release, and what else there was.

    `on_bytes` is told bytes done and in total, `on_line` why files were copied that could have shared their blocks with
    the store. Raises PublishError where the folder is no release of this recipe's, or holds a file of somebody else's
    where the release has one, StoreError where a file of the store turns out to be damaged (then the old release
    stays).
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise PublishError(f"{target} is not a folder", remedy="name another folder in publish.to")
    if target.is_dir() and any(target.iterdir()) and not _ours(target):
        raise PublishError(
            f"{target} holds files that rwkvflow did not publish, and is no release",
            remedy="name an empty or new folder in publish.to",
        )
    refuse_others(str(target), _name(target), release)
    kept = _others(target, release)
    with _own_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.rwkvflow-"
        with _one_at_a_time(target.parent):
            for left in target.parent.glob(prefix + "*"):
                remove(left)
            fresh = target.parent / f"{prefix}{uuid.uuid4().hex}"
            try:
                _write(release, fresh, target, key, on_bytes, on_line)
                for path in kept:
                    _keep(target / path, fresh / path)
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


def _others(target: Path, release: Release) -> list[str]:
    """Relative paths of what no release put into a folder, each folder before what is in it.

    Raises PublishError where the release needs such a path, and for what cannot go along: pipes, sockets, devices.
    """
    if not target.is_dir():
        return []
    ours, new = {STATE, *_published(target)}, {file.path for file in release.files}
    folders = {parent.as_posix() for path in (*ours, *new) for parent in PurePosixPath(path).parents}
    found = []
    for root, names, files in os.walk(target):
        for name in sorted((*names, *files)):
            path = (Path(root) / name).relative_to(target).as_posix()
            mode = (target / path).lstat().st_mode
            if path in ours and not stat.S_ISDIR(mode):
                continue
            if stat.S_ISDIR(mode) and path in folders:
                continue
            if path in new or path in folders or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                what = "the release has one of this name" if path in new | folders else "it is neither file nor folder"
                raise PublishError(
                    f"{target} holds {ascii(path)[1:-1]}, which rwkvflow did not publish, and {what}",
                    remedy="move it away, or name another folder in publish.to",
                )
            found.append(path)
    return found


def _published(target: Path) -> set[str]:
    """The files that the release in a folder consists of, as the folder says."""
    files = (read_json(target / STATE) or {}).get("files")
    if isinstance(files, dict):
        return set(files)
    try:
        listed, _ = parse_sums((target / SUMS).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return set()
    return {*listed, SUMS, SIGNATURE}


def _keep(old: Path, new: Path) -> None:
    """What is not ours, in the folder that takes the old one's place: the same file by a second name."""
    mode = old.lstat().st_mode
    if stat.S_ISDIR(mode):
        new.mkdir(parents=True, exist_ok=True)
        shutil.copystat(old, new)
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISLNK(mode):
        new.symlink_to(old.readlink())
        return
    try:
        new.hardlink_to(old)
    except OSError:  # a file system without them
        shutil.copy2(old, new)


@contextlib.contextmanager
def _own_disk(target: Path) -> Iterator[None]:
    """A disk that is full, or may not be written, is the release's here, and not the store's."""
    try:
        yield
    except OSError as error:
        if is_full(error):
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


def _write(
    release: Release,
    fresh: Path,
    old: Path,
    key: str,
    on_bytes: Callable[[int, int], None],
    on_line: Callable[[str], None],
) -> None:
    total, done = sum(file.size for file in release.files), 0
    copied: dict[str, int] = {}  # why: bytes
    state = read_json(old / STATE) or {}
    fresh.mkdir()
    for file in release.files:
        path = fresh / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _take_over(file, old, path, state):
            why = _copy(file, path)
            if why and file.size >= _LARGE:
                copied[why] = copied.get(why, 0) + file.size
        done += file.size
        on_bytes(done, total)
    for why, size in copied.items():
        on_line(f"{bytes_text(size)} were copied: {why}")
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


def _copy(file: ReleaseFile, path: Path) -> str:
    """Write a file of the release, proven as it is read; "" where it shares its blocks with the store, else why not."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as out:
        why = "it was made just now" if isinstance(file.source, bytes) else _clone(file.source, out.fileno())
        for chunk in _chunks(file.source if why else path):
            digest.update(chunk)
            view = memoryview(chunk if why else b"")
            while view:
                view = view[out.write(view) :]
        os.fsync(out.fileno())
    if f"sha256:{digest.hexdigest()}" != file.digest:
        raise StoreError(
            f"{file.path}: its bytes in the store are not what they were",
            remedy="run `rwkvflow cache verify`, then again",
        )
    return why


def _clone(source: Path, out: int) -> str:
    """Let an empty file that is open share a file's blocks (Btrfs, XFS, bcachefs); "", or why that is not to be had."""
    if not sys.platform.startswith("linux"):
        return "files share no blocks on this system"
    try:
        with source.open("rb") as file:
            machine.share_blocks(file, out)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return "the store is on another file system"
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            return "the file system has no reflinks"
        return f"the file system refused to share blocks: {error.strerror}"
    return ""


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
    with machine.locked_folder(folder):
        yield
