"""Wheels as the files that an installed one has, read from the archive while the build context is sent.

Nothing of a wheel runs, and no installer is needed in the image. Where files go follows "Binary distribution format" of
the Python Packaging User Guide, for a folder that is named to PYTHONPATH: libraries and data at its top, scripts in
bin/. Scripts of entry points are not made: nothing in an image calls one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rwkvflow.base.errors import StepFailed

PYTHON = b"#!/usr/bin/env python3"  # for scripts that say "#!python": "whatever Python this was installed with"
# NotImplementedError: a compression that is not known; RuntimeError: an encrypted one; OSError without a number: seeks.
DAMAGED: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, IndexError, OverflowError, OSError),
)
PLACES = {"purelib": "", "platlib": "", "data": "", "scripts": "bin/", "headers": "include/"}


@dataclass(frozen=True)
class Member:
    """A file inside of an open wheel. `script`: its first line may stand for the interpreter."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    script: bool = False

    @property
    def executable(self) -> bool:
        """Whether it may be run; other bits of its mode do not count."""
        return self.script or bool(self.info.external_attr >> 16 & 0o111)

    def open(self) -> tuple[int, IO[bytes]]:
        """Its size in bytes, and its content."""
        with _whole(Path(str(self.archive.filename)).name):
            if self.script:
                with self.archive.open(self.info) as file:
                    first = file.read(len(b"#!python"))
                if first == b"#!python":
                    content = PYTHON + self.archive.read(self.info)[len(first) :]
                    return len(content), io.BytesIO(content)
            return self.info.file_size, cast(IO[bytes], _Content(self.archive.open(self.info), self.archive.filename))


class _Content(io.RawIOBase):
    """The content of a file of a wheel; what is damaged in it is told as everything about wheels is."""

    def __init__(self, file: IO[bytes], wheel: str | None) -> None:
        self._file, self._wheel = file, Path(str(wheel)).name

    def read(self, size: int = -1) -> bytes:
        with _whole(self._wheel):
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def _whole(wheel: str) -> Iterator[None]:
    """Raises StepFailed for whatever zipfile and its decompressors raise for an archive that is damaged."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, and not of a seek
            raise
        raise StepFailed(f"{wheel}: is no wheel, or is damaged: {error}", remedy="run `rwkvflow lock` again") from error


def unpacked(wheels: Mapping[Path, frozenset[str]]) -> dict[str, Member]:
    """The files of some wheels by their place below the folder; where two have the same, the later one's counts.

    `wheels`: each with the sha256 that it may have. Raises StepFailed for one that has another, is no archive, or has a
    file that would stand outside.
    """
    found: dict[str, Member] = {}
    for path, accepted in wheels.items():
        file = path.open("rb")  # the one that was checked is the one that is read; closed with the last Member
        _check(path.name, file, accepted)
        with _whole(path.name):
            archive = zipfile.ZipFile(file)
        for info in archive.infolist():
            if not info.filename.endswith("/"):  # is_dir() fails where there is no name
                name, script = _place(path.name, info.filename)
                found[name] = Member(archive, info, script)
    _no_file_is_a_folder(found)
    return found


def _check(name: str, file: BufferedReader, accepted: Iterable[str]) -> None:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in accepted:
        raise StepFailed(
            f"{name}: has sha256 {digest}, the lock says {', '.join(sorted(accepted))}",
            remedy="`rwkvflow cache verify` removes damaged files; the next run fetches them again",
        )
    file.seek(0)


def _place(wheel: str, name: str) -> tuple[str, bool]:
    """Where a file of a wheel goes, and whether it is a script."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ".." in parts or not parts or not name.isprintable():
        raise StepFailed(f"{wheel}: its file {name!r} has a name that no wheel may have", remedy="use another version")
    if len(parts) > 2 and parts[0].endswith(".data"):
        place = PLACES.get(parts[1])
        if place is None:
            raise StepFailed(f"{wheel}: {name} is of no kind that a wheel may have", remedy="use another version")
        return place + "/".join(parts[2:]), parts[1] == "scripts"
    return "/".join(parts), False


def _no_file_is_a_folder(found: Mapping[str, Member]) -> None:
    for name in found:
        for parent in PurePosixPath(name).parents:
            if (other := found.get(parent.as_posix())) is not None:
                wheels = " and ".join(Path(str(item.archive.filename)).name for item in (other, found[name]))
                raise StepFailed(f"{wheels} do not go together: {parent} is a file in one, a folder in the other")
