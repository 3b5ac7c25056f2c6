"""A folder as one tar file whose bytes depend on nothing but the folder's names, contents and executable bits."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from rwkvflow.base.files import takes_nothing
from rwkvflow.base.hashing import SKIPPED, walk


class ArchiveError(ValueError):
    """An archive that `pack` cannot have made."""


def pack(folder: Path, target: Path) -> None:
    """Write the files below a folder, and the links, which may point only inside it. Uncompressed."""
    links = [
        path
        for path in folder.rglob("*")
        if path.is_symlink() and not SKIPPED.intersection(path.relative_to(folder).parts)
    ]
    files = [path for path in walk(folder) if not path.is_symlink()]
    entries = sorted((path.relative_to(folder).as_posix(), path) for path in [*files, *links])
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in entries:
            member = tarfile.TarInfo(name)
            if path.is_symlink():
                member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, str(path.readlink())
                archive.addfile(member)
                continue
            status = path.stat()
            member.size, member.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)


def unpack(archive_path: Path, folder: Path, most_bytes: int) -> None:
    """Unpack below a new folder, which nothing may leave. Raises ArchiveError for all that `pack` does not write.

    Raises OSError where the disk here is full, which says nothing about the archive.
    """
    folder.mkdir()
    try:
        with tarfile.open(archive_path, "r:") as archive:
            links = _files(archive, folder, most_bytes)
        _links(links, folder)  # last, so that nothing is written through one
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, ArchiveError) or takes_nothing(error):
            raise
        raise ArchiveError(str(error)) from error  # RuntimeError: links that lead in a circle


def _files(archive: tarfile.TarFile, folder: Path, most_bytes: int) -> list[tuple[Path, str]]:
    """Write the files; the links and where they lead."""
    left = most_bytes
    links: list[tuple[Path, str]] = []
    for member in archive:
        path = folder / _inside(member.name)
        if member.issym():
            links.append((path, member.linkname))
            continue
        if not member.isreg():
            raise ArchiveError(f"{member.name}: neither a file nor a link")
        left -= member.size
        if left < 0:
            raise ArchiveError(f"it unpacks to more than {most_bytes} bytes")
        path.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None  # noqa: S101 - a regular file has contents
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)
    return links


def _links(links: list[tuple[Path, str]], folder: Path) -> None:
    for path, to in links:
        place = path.relative_to(folder).parent
        _inside((place / to).as_posix() if not to.startswith("/") else to, dots=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            raise ArchiveError(f"{path.name}: twice")
        path.symlink_to(to)
    for path, _ in links:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ArchiveError(f"{path.name}: a link that leaves its folder")


def _inside(name: str, *, dots: bool = False) -> PurePosixPath:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or "\0" in name:
        raise ArchiveError(f"not a place inside a folder: {name!r}")
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or (part == ".." and not dots):
            raise ArchiveError(f"not a place inside a folder: {name!r}")
    return path
