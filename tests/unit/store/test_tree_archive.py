"""Folders as archives: there and back, the same bytes always, and nothing gets out."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.hashing import tree_digest
from rwkvflow.store.tree_archive import ArchiveError, pack, unpack

NAMES = st.text("abcé .-", min_size=1, max_size=120).filter(lambda text: text.strip(". "))
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.tuples(st.binary(max_size=600), st.booleans()), max_size=6
)


def lay_out(folder: Path, files: dict[tuple[str, ...], tuple[bytes, bool]]) -> None:
    folder.mkdir()
    for parts, (data, executable) in files.items():
        path = folder.joinpath(*parts)
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if executable else 0o600)


@given(FILES)
def test_there_and_back(files: dict[tuple[str, ...], tuple[bytes, bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        lay_out(root / "tree", files)
        pack(root / "tree", root / "one.tar")
        size = sum(path.stat().st_size for path in (root / "tree").rglob("*") if path.is_file())
        unpack(root / "one.tar", root / "again", size)
        assert tree_digest(root / "again") == tree_digest(root / "tree")
        for path in (root / "again").rglob("*"):
            os.utime(path, (5, 5))
        pack(root / "again", root / "two.tar")
        assert (root / "one.tar").read_bytes() == (root / "two.tar").read_bytes()


def test_links_inside_come_along(tmp_path: Path) -> None:
    lay_out(tmp_path / "tree", {("lib", "librwkv.so.1"): (b"elf", True)})
    (tmp_path / "tree/lib/librwkv.so").symlink_to("librwkv.so.1")
    (tmp_path / "tree/current").symlink_to("lib")
    pack(tmp_path / "tree", tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "again", 100)
    assert (tmp_path / "again/current/librwkv.so").read_bytes() == b"elf"
    assert tree_digest(tmp_path / "again") == tree_digest(tmp_path / "tree")


def archive(path: Path, *members: tuple[bytes, str, str, int]) -> Path:
    with tarfile.open(path, "w") as file:
        for kind, name, to, size in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, to, size
            file.addfile(member, io.BytesIO(b"x" * size))
    return path


REG, SYM, HARD, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [(REG, "../out", "", 1)],
        [(REG, "/etc/out", "", 1)],
        [(REG, "a/../../out", "", 1)],
        [(SYM, "a", "../..", 0), (REG, "a/out", "", 1)],
        [(SYM, "a", "/tmp", 0)],
        [(SYM, "d/a", "../../out", 0)],
        [(SYM, "a", "b/../..", 0), (SYM, "b", "c", 0), (REG, "c/d", "", 1)],
        [(HARD, "a", "/etc/passwd", 0)],
        [(DEVICE, "null", "", 0)],
        [(REG, "a", "", 1), (REG, "a", "", 1)],
        [(REG, "a", "", 1), (REG, "a/b", "", 1)],
        [(REG, "big", "", 2000)],
        [(REG, "a", "", 1), (SYM, "a", "b", 0)],
    ],
)
def test_nothing_gets_out(tmp_path: Path, members: list[tuple[bytes, str, str, int]]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ArchiveError):
        unpack(archive(tmp_path / "a.tar", *members), tmp_path / "in" / "tree", 1000)
    outside = {path.name for path in tmp_path.iterdir()} - {"a.tar", "in"}
    assert not outside
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {"tree"}


@given(st.integers(0, 2200), st.binary(min_size=1, max_size=40))
def test_damage_raises_or_is_harmless(at: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        lay_out(root / "tree", {("a",): (b"1" * 600, False), ("b", "c"): (b"2", True)})
        pack(root / "tree", root / "a.tar")
        data = bytearray((root / "a.tar").read_bytes())
        data[at : at + len(junk)] = junk
        (root / "a.tar").write_bytes(bytes(data))
        (root / "out").mkdir()
        with contextlib.suppress(ArchiveError):
            unpack(root / "a.tar", root / "out" / "tree", 601)
        assert {path.name for path in root.iterdir()} == {"tree", "a.tar", "out"}


def test_truncated(tmp_path: Path) -> None:
    lay_out(tmp_path / "tree", {("a",): (b"1" * 6000, False)})
    pack(tmp_path / "tree", tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3000])
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "a.tar", tmp_path / "again", 6000)


@pytest.mark.parametrize(
    "links",
    [
        [("c", "")],
        [("c", "x" * 5000)],
        [("c" * 300, "a")],
        [("a/b", "x")],
        [("c", "d"), ("d", "c")],
        [("c", "\0")],
    ],
    ids=["to nothing", "a long place", "a long name", "below a file", "in a circle", "a character that no place has"],
)
def test_a_link_that_the_system_refuses_is_the_archives_fault(tmp_path: Path, links: list[tuple[str, str]]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
        for name, to in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, to
            archive.addfile(member)
    with contextlib.suppress(ArchiveError):  # some systems allow some of them
        unpack(tmp_path / "x.tar", tmp_path / "out", 1 << 20)
        assert [name for name, _ in links] in (["c"], ["c", "d"])


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("a")
    pack(tmp_path / "tree", tmp_path / "x.tar")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rwkvflow.store.tree_archive.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "x.tar", tmp_path / "out", 1 << 20)
