"""A folder shares blocks with the store where the file system can; else its files are copied, and why is said."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
from pathlib import Path

import pytest

from rwkvflow.base.errors import StoreError
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.text import bytes_text
from rwkvflow.publish import folder
from rwkvflow.release.artifacts import ReleaseFile
from rwkvflow.release.release import Release

LARGE = bytes(range(256)) * 8192  # 2 MiB
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reflinks are Linux's here")


def publish(tmp_path: Path, digest: str | None = None) -> tuple[dict[str, bytes], list[str]]:
    """What stands in the folder, and the lines that were told."""
    source = tmp_path / "blob"
    source.write_bytes(LARGE)
    weights = ReleaseFile("m/m.bin", digest or file_digest(source), len(LARGE), source)
    text = ReleaseFile("README.md", "sha256:" + hashlib.sha256(b"text").hexdigest(), 4, b"text")
    lines: list[str] = []
    release = Release("demo", (weights, text), ())
    folder.publish_folder(release, tmp_path / "out", key="k", on_bytes=lambda done, total: None, on_line=lines.append)
    return {file.path: (tmp_path / "out" / file.path).read_bytes() for file in release.files}, lines


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file system with reflinks: blocks are shared by copying them inside the call. Bytes that went so."""
    asked: list[int] = []

    def ioctl(out: int, what: int, source: int) -> int:
        assert what == 0x40049409
        asked.append(os.sendfile(out, source, 0, os.fstat(source).st_size))
        os.lseek(out, 0, os.SEEK_SET)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


@linux
def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path, shares: list[int]) -> None:
    assert publish(tmp_path) == ({"m/m.bin": LARGE, "README.md": b"text"}, [])
    assert shares == [len(LARGE)]


@linux
def test_what_is_shared_is_proven_too(tmp_path: Path, shares: list[int]) -> None:
    with pytest.raises(StoreError, match="not what they were"):
        publish(tmp_path, "sha256:" + "1" * 64)
    assert not (tmp_path / "out").exists()


@linux
@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EXDEV, "the store is on another file system"),
        (errno.EOPNOTSUPP, "the file system has no reflinks"),
        (errno.ENOTTY, "the file system has no reflinks"),
        (errno.EPERM, "the file system refused to share blocks: Operation not permitted"),
    ],
)
def test_a_copy_is_made_and_the_reason_told(
    number: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(*call: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    files, lines = publish(tmp_path)
    assert files["m/m.bin"] == LARGE
    assert lines == [f"{bytes_text(len(LARGE))} were copied: {why}"]


def test_on_this_file_system_the_bytes_arrive(tmp_path: Path) -> None:
    assert publish(tmp_path)[0]["m/m.bin"] == LARGE
