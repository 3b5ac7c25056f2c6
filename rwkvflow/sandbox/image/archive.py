"""The build context: a tar that is the same for the same contents, made while it is sent, never whole in memory."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.hashing import file_digest, walk
from rwkvflow.base.shipped import shipped
from rwkvflow.sandbox.base import EnvironmentSpec
from rwkvflow.sandbox.image.unpack import Member, unpacked

CHUNK = 1 << 20
# What is copied to the root of an image stands below its folders there; see dockerfile.py.
PLACES = {"worker": "worker/opt/rwkvflow/site", "code": "code/opt/rwkvflow/code"}
_REQUIREMENT = re.compile(r"^(?P<name>[^\s=]+)==(?P<version>\S+)(?P<hashes>(\s+--hash=sha256:[0-9a-f]{64})+)$")


@dataclass(frozen=True)
class ArchiveEntry:
    """One file of the archive: where it stands, and its content: bytes, a file on this machine or one of a wheel."""

    name: str  # relative POSIX path
    content: bytes | Path | Member
    executable: bool = False


def stream(entries: Iterable[ArchiveEntry], check: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The tar in pieces: sorted, folders before their files, owner 0, time 0. `check` is called for each piece.

    Raises StepFailed where a file changed while it was read.
    """
    folders: set[str] = set()
    for entry in sorted(entries, key=lambda item: PurePosixPath(item.name).parts):
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"not a path inside an archive: {entry.name}")
        for parent in [*reversed(path.parents)][1:]:
            if (name := parent.as_posix()) not in folders:
                folders.add(name)
                yield _header(name, 0, 0o755, tarfile.DIRTYPE)
        yield from _file(entry, check)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _file(entry: ArchiveEntry, check: Callable[[], None]) -> Iterator[bytes]:
    size, opened = _open(entry.content)
    left = size
    with opened as file:
        yield _header(entry.name, size, 0o755 if entry.executable else 0o644, tarfile.REGTYPE)
        while piece := file.read(min(CHUNK, left)):
            check()
            left -= len(piece)
            yield piece
    if left:
        raise StepFailed(f"{entry.name}: became shorter while it was read", remedy="run again")
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _open(content: bytes | Path | Member) -> tuple[int, IO[bytes]]:
    if isinstance(content, bytes):
        return len(content), io.BytesIO(content)
    if isinstance(content, Member):
        return content.open()
    return content.stat().st_size, content.open("rb")


def _header(name: str, size: int, mode: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, mode, kind
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def folder_entries(name: str, folder: Path) -> list[ArchiveEntry]:
    """The files of a folder below `name`, the same ones that hashing.tree_digest counts.

    Links inside the folder become the file that they name. Raises StepFailed for one that leaves it.
    """
    inside = folder.resolve()
    entries = []
    for path in walk(folder):
        if not path.resolve().is_relative_to(inside):
            raise StepFailed(
                f"{name}/{path.relative_to(folder)}: links to a file outside of its folder",
                remedy="replace the link by the file",
            )
        relative = path.relative_to(folder).as_posix()
        entries.append(ArchiveEntry(f"{name}/{relative}", path, bool(path.stat().st_mode & 0o100)))
    return entries


def parse_requirements(text: str) -> dict[tuple[str, Version], frozenset[str]]:
    """(normalized name, version) -> accepted sha256 digests, of a file that `requirements_text` wrote."""
    result: dict[tuple[str, Version], frozenset[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            raise StepFailed(f"not a requirement with hashes: {line.strip()!r}", remedy="run `rwkvflow lock` again")
        hashes = frozenset(re.findall(r"sha256:([0-9a-f]{64})", match["hashes"]))
        try:
            version = Version(match["version"])
        except InvalidVersion as error:
            raise StepFailed(f"not a requirement: {error}", remedy="run `rwkvflow lock` again") from None
        result[(canonicalize_name(match["name"]), version)] = hashes
    return result


def wheels_of(requirements: str, wheels: Path) -> dict[Path, frozenset[str]]:
    """The wheel file of each requirement, with its accepted digests. Raises StepFailed where one is absent."""
    there: dict[tuple[str, Version], list[Path]] = {}
    for path in sorted(wheels.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        there.setdefault((name, version), []).append(path)
    result = {}
    for (project, version), hashes in parse_requirements(requirements).items():
        files = there.get((project, version), [])
        if not files:
            raise StepFailed(
                f"the wheelhouse has no wheel of {project} {version}",
                remedy="run again; `rwkvflow lock` renews the lock",
            )
        if len(files) > 1:  # builds for several platforms: the hash tells which one was locked
            files = [path for path in files if file_digest(path).removeprefix("sha256:") in hashes] or files
        result.update(dict.fromkeys(files, hashes))
    return result


def context(spec: EnvironmentSpec) -> list[ArchiveEntry]:
    """Everything in the build context of an environment; dockerfile.py documents the layout."""
    entries = [
        ArchiveEntry("Dockerfile", spec.dockerfile.encode()),
        ArchiveEntry("base/rwkvflow/stage.py", shipped("images/stage.py")),
    ]
    for role, text in requirements_by_role(spec.requirements).items():
        for place, member in unpacked(wheels_of(text, spec.wheels)).items():
            entries.append(ArchiveEntry(f"{_placed(role)}/{place}", member, member.executable))
    for name, folder in spec.context.items():
        entries.extend(folder_entries(_placed(name), folder))
    return entries


def _placed(name: str) -> str:
    """Where a folder of a spec stands in the context."""
    first, slash, rest = name.partition("/")
    return PLACES.get(first, first) + slash + rest


def requirements_by_role(requirements: Mapping[str, str]) -> dict[str, str]:
    """{"worker": text, ...} of a spec's requirement files, those without any requirement left out."""
    return {name.removesuffix(".txt"): text for name, text in requirements.items() if parse_requirements(text)}
