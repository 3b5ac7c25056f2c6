"""Source packages of the package index: downloaded and unpacked, never run on this machine."""

from __future__ import annotations

import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from rwkvflow.base.errors import FetchError
from rwkvflow.base.files import clear_errors, is_full
from rwkvflow.documents.lock import LockedPackage
from rwkvflow.net.packages.package_index import download, files_of
from rwkvflow.net.packages.pip_settings import settings_of_environment

LARGEST = 1 << 30  # bytes that may be unpacked


def fetch_package(
    locked: LockedPackage,
    destination: Path,
    *,
    root: str,
    kept: Sequence[str],
    scratch: Path,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Unpack what `kept` (paths and globs below `root`) names of a source package into `destination`, which it makes.

    Raises FetchError where the index does not have the package or has another, StoreError for a full disk.
    """
    with clear_errors(f"fetching {locked.filename}"):
        archive = _download(locked, scratch, on_line, cancel)
        unpack(archive, destination, root=root, kept=kept)
        archive.unlink()


def _download(
    locked: LockedPackage,
    scratch: Path,
    on_line: Callable[[str], None] | None,
    cancel: threading.Event | None,
) -> Path:
    settings = settings_of_environment()
    file = next((file for file in files_of(locked.name, settings, cancel) if file.filename == locked.filename), None)
    if file is None:
        raise FetchError(
            f"no package index has {locked.filename}",
            remedy="check pip's configuration (pip.conf, PIP_*): the index must have source packages",
        )
    if on_line is not None:
        on_line(f"downloading {locked.filename}")
    path = scratch / "arrived" / locked.filename
    if file.sha256 not in (None, locked.sha256):
        raise _another(locked)
    path.parent.mkdir(parents=True, exist_ok=True)
    if download(file, path, settings, sha256=None, cancel=cancel) != locked.sha256:
        raise _another(locked)
    return path


def _another(locked: LockedPackage) -> FetchError:
    return FetchError(
        f"{locked.filename} of the package index is not the one in the lock",
        remedy="it was replaced or tampered with on the way; `rwkvflow lock` if you trust the new one",
    )


def unpack(archive: Path, destination: Path, *, root: str, kept: Sequence[str]) -> None:
    """The regular files of a .tar.gz that are wanted; the archive's one top folder and `root` are stripped.

    Raises FetchError for an archive that is damaged, absurdly large, or has none of them.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                name = _wanted(member.name, root, kept)
                if name is None or not member.isfile():
                    continue
                total += member.size
                if total > LARGEST:
                    raise FetchError(f"{archive.name} holds more than {LARGEST >> 30} GiB")
                source = opened.extractfile(member)
                target = destination / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source is not None:
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        if is_full(error):
            raise
        raise FetchError(f"{archive.name} cannot be unpacked: {error}") from error
    if not total:
        raise FetchError(f"{archive.name} has none of the files that are looked for in it below {root}")


def _wanted(name: str, root: str, kept: Sequence[str]) -> str | None:
    """Path below root of a member's name; None for what is not kept or leads anywhere else."""
    parts = PurePosixPath(name).parts
    below = PurePosixPath(root).parts
    if name.startswith("/") or ".." in parts or "\\" in name or parts[1 : 1 + len(below)] != below:
        return None
    rest = "/".join(parts[1 + len(below) :])
    for pattern in kept:
        same_depth = rest.count("/") == pattern.count("/")
        if rest == pattern or rest.startswith(f"{pattern}/") or (same_depth and fnmatchcase(rest, pattern)):
            return rest
    return None
