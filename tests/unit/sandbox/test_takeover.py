"""Thirty ways to leave a sandbox by an output, and that what is honest goes through."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.files import remove
from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.sandbox import takeover
from rwkvflow.sandbox.takeover import identities, take

CANARY = b"a secret of the user's\n"


class Place:
    """A step's working folder with an input, and a secret of the user's beside it."""

    def __init__(self, root: Path) -> None:
        self.work, self.out, self.taken = root / "work", root / "work" / "out", root / "work" / "taken"
        for folder in (self.out, self.taken):
            folder.mkdir(parents=True)
        self.input = root / "input"
        self.input.write_bytes(b"an input")
        self.secret = root / "secret"
        self.secret.write_bytes(CANARY)
        self.secret.chmod(0o600)
        self.folder = root / "private"
        self.folder.mkdir(mode=0o700)
        (self.folder / "key").write_bytes(CANARY)

    def take(self, name: str = "x", **more: object) -> takeover.Taken:
        return take(self.work, name, self.taken / name, inputs=identities(self.input), **more)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def deep(folder: Path, count: int) -> None:
    """Folders in one another, deeper than a path can be long."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(count):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


def folders(count: int) -> Callable[[Path, Place], object]:
    def make(path: Path, place: Place) -> None:
        path.mkdir()
        deep(path, count)

    return make


def a_folder(make: Callable[[Path, Place], object]) -> Callable[[Path, Place], object]:
    """The same inside of an honest folder."""

    def inside(path: Path, place: Place) -> None:
        (path / "honest").mkdir(parents=True)
        (path / "honest" / "file").write_text("honest")
        make(path / "honest" / "x", place)

    return inside


def hole(size: int) -> Callable[[Path, Place], object]:
    def make(path: Path, place: Place) -> None:
        with path.open("wb") as file:
            file.write(b"x")
            bits = size
            while True:  # as much of it as this file system has numbers for
                try:
                    file.truncate(bits)
                    return
                except OSError:
                    bits //= 2

    return make


def unix(path: Path, place: Place) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def named(name: str | bytes) -> Callable[[Path, Place], object]:
    def make(path: Path, place: Place) -> None:
        path.mkdir()
        try:
            os.close(os.open(os.fsencode(path) + b"/" + os.fsencode(name), os.O_CREAT | os.O_WRONLY))
        except OSError:
            pytest.skip("this file system has no such names")

    return make


def out_is_a_link(path: Path, place: Place) -> None:
    place.out.rmdir()
    (place.folder / "x").write_bytes(CANARY)
    place.out.symlink_to(place.folder)


def two_names(path: Path, place: Place) -> None:
    path.write_text("x")
    (place.out / "another").hardlink_to(path)


def many(path: Path, place: Place) -> None:
    path.mkdir()
    for number in range(takeover.ENTRIES + 1):
        os.close(os.open(path / str(number), os.O_CREAT | os.O_WRONLY))


def long_path(path: Path, place: Place) -> None:
    for _ in range(6):
        path = path / ("d" * 200)
    path.mkdir(parents=True)
    (path / "file").write_text("x")


def device(path: Path, place: Place) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


LINKS: dict[str, Callable[[Path, Place], object]] = {
    "link to a secret": lambda path, place: path.symlink_to(place.secret),
    "relative link": lambda path, place: path.symlink_to(os.path.relpath(place.secret, path.parent)),
    "link to an input": lambda path, place: path.symlink_to(place.input),
    "link to a folder": lambda path, place: path.symlink_to(place.folder),
    "link to nothing": lambda path, place: path.symlink_to("nowhere"),
    "link to itself": lambda path, place: path.symlink_to(path.name),
    "link through /proc": lambda path, place: path.symlink_to(f"/proc/self/cwd/../../..{place.secret}"),
    "link to a descriptor": lambda path, place: path.symlink_to("/proc/self/fd/0"),
    "link to a device": lambda path, place: path.symlink_to("/dev/zero"),
    "named pipe": lambda path, place: os.mkfifo(path),
    "socket": unix,
    "device": device,
    "hard link to an input": lambda path, place: path.hardlink_to(place.input),
    "hard link to a secret": lambda path, place: path.hardlink_to(place.secret),
    "two names": two_names,
    "petabyte of nothing": hole(1 << 50),
    "more than any output": hole(takeover.SIZE + 1),
}
WAYS: dict[str, Callable[[Path, Place], object]] = {
    **LINKS,
    **{f"folder with a {name}": a_folder(make) for name, make in LINKS.items() if name != "two names"},
    "out is a link": out_is_a_link,
    "three thousand folders": folders(3000),
    "one folder too deep": folders(takeover.DEPTH),
    "too many files": many,
    "path too long": long_path,
    "name with an escape": named("\x1b[2Jx"),
    "name with a line feed": named("a\nb"),
    "name with C1": named("a\x9bb"),
    "name read backwards": named("gpj.\u202eexe"),
    "name that is no UTF-8": named(b"\xff\xfe"),
    "name with a surrogate": named("a\udc80"),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_leaves_by(way: str, place: Place) -> None:
    WAYS[way](place.out / "x", place)
    start = time.monotonic()
    with pytest.raises(StepFailed, match=r"out.* not taken") as error:
        place.take()
    assert time.monotonic() - start < 20, "nothing hangs"
    assert str(error.value).isprintable() or "\n" in str(error.value)
    assert not any(ord(letter) < 32 and letter != "\n" for letter in str(error.value))
    taken = [path for path in place.taken.rglob("*") if path.is_file()]
    assert all(CANARY not in path.read_bytes() for path in taken if path.stat().st_size < 1 << 20)
    assert place.secret.read_bytes() == CANARY
    assert place.secret.stat().st_mode & 0o777 == 0o600, "nobody changed its mode"
    assert place.folder.stat().st_mode & 0o777 == 0o700
    remove(place.work)
    assert not place.work.exists(), "what is refused can be removed"
    assert place.secret.read_bytes() == CANARY, "and nothing else goes with it"
    assert (place.folder / "key").read_bytes() == CANARY


def test_there_are_thirty() -> None:
    assert len(WAYS) >= 30


def test_honest_outputs_are_taken_with_our_own_digest(place: Place) -> None:
    (place.out / "x").write_bytes(b"honest")
    (place.out / "x").chmod(0o4777)
    (place.out / "tree" / "sub ü").mkdir(parents=True)
    (place.out / "tree" / "sub ü" / "run").write_text("#!/bin/sh")
    (place.out / "tree" / "sub ü" / "run").chmod(0o755)
    (place.out / "tree" / "empty").write_text("")
    (place.out / "tree" / "__pycache__").mkdir()
    (place.out / "tree" / "__pycache__" / "code.pyc").write_text("no digest counts this")
    file, tree = place.take(), place.take("tree")
    assert file.digest == "sha256:" + hashlib.sha256(b"honest").hexdigest() == file_digest(file.path)
    assert file.path.stat().st_mode & 0o7777 == 0o755, "no setuid"
    assert tree.digest == tree_digest(tree.path)
    assert sorted(path.name for path in tree.path.rglob("*")) == ["empty", "run", "sub ü"]
    assert (file.size, tree.size) == (6, 9)
    assert (tree.path / "sub ü" / "run").stat().st_mode & 0o777 == 0o755


def test_a_file_that_somebody_still_writes_to_is_copied(place: Place) -> None:
    with (place.out / "x").open("wb") as file:
        file.write(b"first")
        file.flush()
        taken = place.take()
        file.write(b" and more")
        file.flush()
        assert taken.path.read_bytes() == b"first"
    assert taken.path.read_bytes() == b"first"


def test_a_flood_while_it_is_read_ends(place: Place) -> None:
    with (place.out / "x").open("wb") as file:

        def grow() -> None:
            file.write(b"x" * (1 << 21))
            file.flush()

        grow()
        with pytest.raises(StepFailed, match="grows while it is read"):
            place.take(largest=16 << 20, check=grow)


def test_limits_count_over_a_whole_folder(place: Place) -> None:
    (place.out / "x").mkdir()
    for number in range(4):
        (place.out / "x" / str(number)).write_bytes(b"x" * 1000)
    with pytest.raises(StepFailed, match="larger than"):
        place.take(largest=3500)


def test_what_is_not_there_is_not_taken(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        place.take()
    with pytest.raises(StepFailed, match="no proper name"):
        place.take("../secret")
