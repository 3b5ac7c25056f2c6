"""Wheels as files of a build context: where each goes, and which are refused."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from rwkvflow.base.errors import StepFailed
from rwkvflow.sandbox.image.unpack import unpacked
from tests.wheels import make_wheel


def accepted(path: Path) -> dict[Path, frozenset[str]]:
    """The wheel with its digest, as a lock has it."""
    return {path: frozenset({hashlib.sha256(path.read_bytes()).hexdigest()})}


def contents(path: Path) -> dict[str, bytes]:
    """What comes out, without the package's own records."""
    found = {}
    for name, member in unpacked(accepted(path)).items():
        if ".dist-info/" not in name:
            size, file = member.open()
            with file:
                found[name] = file.read()
            assert len(found[name]) == size
    return found


def test_each_kind_of_file_has_its_place(tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path,
        "hello",
        "1.0",
        {
            "hello/__init__.py": "",
            "hello-1.0.data/purelib/pure.py": "p",
            "hello-1.0.data/platlib/deep/plat.so": "q",
            "hello-1.0.data/data/share/hello.txt": "d",
            "hello-1.0.data/headers/hello.h": "h",
            "hello-1.0.data/scripts/run": "#!python -u\nprint()\n",
            "hello-1.0.data/scripts/binary": "\x7fELF",
        },
    )
    assert contents(wheel) == {
        "hello/__init__.py": b"",
        "pure.py": b"p",
        "deep/plat.so": b"q",
        "share/hello.txt": b"d",
        "include/hello.h": b"h",
        "bin/run": b"#!/usr/bin/env python3 -u\nprint()\n",
        "bin/binary": b"\x7fELF",
    }
    members = unpacked(accepted(wheel))
    assert {name for name, member in members.items() if member.executable} == {"bin/run", "bin/binary"}


@pytest.mark.parametrize(
    "name",
    [
        "../outside.py",
        "a/../../outside.py",
        "/etc/passwd",
        "a\\..\\b.py",
        "a\nb.py",
        "\x1b[2J.py",
        "hello-1.0.data/purelib/../../../x",
        "hello-1.0.data/unknown/x",
    ],
)
def test_no_name_leads_out(name: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "hello", "1.0", {name: "x"})
    with pytest.raises(StepFailed, match=r"hello-1\.0-py3-none-any\.whl: "):
        unpacked(accepted(wheel))


def test_a_wheel_with_another_digest_is_not_opened(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "hello", "1.0", {"hello.py": ""})
    known = accepted(wheel)
    wheel.write_bytes(b"other")
    with pytest.raises(StepFailed, match=r"has sha256 .* the lock says"):
        unpacked(known)
    with pytest.raises(StepFailed, match="is no wheel"):
        unpacked(accepted(wheel))


def test_of_two_wheels_with_one_file_the_later_counts_and_a_folder_is_no_file(tmp_path: Path) -> None:
    first = make_wheel(tmp_path, "first", "1.0", {"shared.py": "1"})
    second = make_wheel(tmp_path, "second", "1.0", {"shared.py": "2"})
    third = make_wheel(tmp_path, "third", "1.0", {"shared.py/inner.py": "3"})
    member = unpacked({**accepted(first), **accepted(second)})["shared.py"]
    assert member.archive.read(member.info) == b"2"
    with pytest.raises(StepFailed, match=r"do not go together: shared\.py is a file in one, a folder in the other"):
        unpacked({**accepted(first), **accepted(third)})


def test_links_of_an_archive_are_files_here(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "hello", "1.0", {"hello.py": ""})
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("passwd")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert contents(wheel)["passwd"] == b"/etc/passwd"
