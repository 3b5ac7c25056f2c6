"""The build context and the lines of its log: properties that hold for any contents and any cut."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.lines import LONGEST, LineSplitter, Tail
from rwkvflow.sandbox.base import EnvironmentSpec
from rwkvflow.sandbox.image.archive import ArchiveEntry, context, folder_entries, parse_requirements, stream, wheels_of
from tests.wheels import make_wheel, requirement

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..") and name == name.strip()
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join).filter(lambda path: len(path.encode()) < 250)


def _no_folder_is_a_file(paths: dict[str, bytes]) -> bool:
    return not any(other.startswith(path + "/") for path in paths for other in paths)


@settings(deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=2000), max_size=6).filter(_no_folder_is_a_file))
def test_tar_reads_back_and_does_not_depend_on_order(files: dict[str, bytes]) -> None:
    entries = [ArchiveEntry(name, data, executable=len(data) % 2 == 0) for name, data in files.items()]
    whole = b"".join(stream(entries))
    assert whole == b"".join(stream(reversed(entries)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        members = archive.getmembers()
        read = {member.name: archive.extractfile(member).read() for member in members if member.isfile()}  # type: ignore[union-attr]
    assert read == files
    assert {(member.uid, member.gid, member.mtime, member.uname, member.gname) for member in members} <= {
        (0, 0, 0, "", "")
    }
    names = [member.name for member in members]
    assert len(names) == len(set(names))
    for index, member in enumerate(members):
        parent = member.name.rpartition("/")[0]
        assert not parent or parent in names[:index], "a folder comes before what is in it"
        assert member.mode == (0o755 if member.isdir() or len(files[member.name]) % 2 == 0 else 0o644)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_no_path_leads_out(name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        list(stream([ArchiveEntry(name, b"")]))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    pieces = stream([ArchiveEntry("x", path)])
    next(pieces)  # the header says five bytes
    path.write_bytes(b"123")
    with pytest.raises(StepFailed, match="became shorter"):
        list(pieces)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_text("x")
    (tmp_path / "in" / "link").symlink_to("sub/x")
    (tmp_path / "in" / "__pycache__").mkdir()
    (tmp_path / "in" / "__pycache__" / "y").write_text("y")
    assert [entry.name for entry in folder_entries("code", tmp_path / "in")] == ["code/link", "code/sub/x"]
    (tmp_path / "secret").write_text("s")
    (tmp_path / "in" / "out").symlink_to("../secret")
    with pytest.raises(StepFailed, match="code/out: links to a file outside"):
        folder_entries("code", tmp_path / "in")


def test_requirements() -> None:
    text = f"# pins\nNumPy==2.4.6 --hash=sha256:{'a' * 64} \\\n  --hash=sha256:{'b' * 64}\n\n"
    ((name, version), hashes), *rest = parse_requirements(text).items()
    assert (name, str(version), sorted(hashes), rest) == ("numpy", "2.4.6", ["a" * 64, "b" * 64], [])
    for bad in ("numpy", "numpy==1", f"numpy>=1 --hash=sha256:{'a' * 64}", "-r other.txt", "numpy==1 --hash=md5:0"):
        with pytest.raises(StepFailed, match="not a requirement with hashes"):
            parse_requirements(bad)


def test_context_holds_the_locked_wheels_by_role_and_no_others(tmp_path: Path) -> None:
    wheels, code = tmp_path / "wheels", tmp_path / "code"
    wheels.mkdir()
    code.mkdir()
    (code / "x.py").write_text("x")
    hello = make_wheel(wheels, "hello_world", "1.0", {"hello.py": ""})
    make_wheel(wheels, "stranger", "1.0", {"stranger.py": ""})
    text = requirement(hello).replace("hello_world", "hello-world")
    spec = EnvironmentSpec("t", "i", "FROM x\n", "x", "3.11", wheels, {"worker.txt": text}, {"code/a": code})
    names = {entry.name for entry in context(spec)}
    assert names == {
        "Dockerfile",
        "base/rwkvflow/stage.py",
        "worker/opt/rwkvflow/site/hello.py",
        *(f"worker/opt/rwkvflow/site/hello_world-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")),
        "code/opt/rwkvflow/code/a/x.py",
    }


def test_of_two_builds_of_a_wheel_the_locked_one_is_taken(tmp_path: Path) -> None:
    first = make_wheel(tmp_path, "hello", "1.0", {"hello.py": ""})
    second = tmp_path / "hello-1.0-py2-none-any.whl"
    second.write_bytes(b"other")
    assert list(wheels_of(requirement(first), tmp_path)) == [first]


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20), max_size=8)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.lists(st.integers(0, 400), max_size=10))
def test_lines_do_not_depend_on_where_they_are_cut(lines: list[str], end: str, ended: bool, cuts: list[int]) -> None:
    data = "".join(line + end for line in lines).encode()
    if not ended and lines and lines[-1]:
        data = data[: -len(end)]
    seen: list[str] = []
    splitter = LineSplitter(seen.append)
    previous = 0
    for cut in [*sorted(cuts), len(data)]:
        splitter.feed(data[previous:cut])
        previous = max(previous, cut)
    splitter.close()
    assert seen == lines


def test_progress_bars_and_endless_lines_and_bad_bytes() -> None:
    seen: list[str] = []
    splitter = LineSplitter(seen.append)
    splitter.feed(b"10%\r20%\r")
    splitter.feed(b"100%\r\n\xff\n")
    assert seen == ["10%", "20%", "100%", "\N{REPLACEMENT CHARACTER}"]
    seen.clear()
    for _ in range(5):
        splitter.feed(b"x" * (LONGEST // 2))
    assert [len(line) for line in seen] == [LONGEST, LONGEST], "memory is bounded"


def test_tail_keeps_the_end() -> None:
    seen: list[str] = []
    tail = Tail(seen.append)
    for number in range(100):
        tail(str(number))
    assert len(seen) == 100
    assert str(tail).splitlines() == [str(number) for number in range(60, 100)]
