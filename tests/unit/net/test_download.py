"""The parts of fetching that need no network: what is asked, what is refused, what is kept."""

from __future__ import annotations

import email.utils
import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import FetchError, LockError, StoreError
from rwkvflow.documents.sources import public_url
from rwkvflow.net.download import mismatch, need_space, refuse_pages
from rwkvflow.net.http import Policy, origin, retry_after, scrub
from rwkvflow.net.hub import Hub
from rwkvflow.net.packages.target import Target
from rwkvflow.net.partial import PartialFile

TOKEN = "hf_PlantedTokenThatMustNotLeak0123456789"  # noqa: S105 - planted to be looked for


def test_delays_double_up_to_a_cap_without_jitter() -> None:
    policy = Policy(first_delay_s=0.5, longest_delay_s=30)
    assert [policy.delay(n) for n in (1, 2, 3, 7, 8, 1000)] == [0.5, 1, 2, 30, 30, 30]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7), (" 7 ", 7), (None, None), ("soon", None), ("-3", None), ("99999999999", None), ("1.5", None)],
)
def test_retry_after_numbers(value: str | None, expected: float | None) -> None:
    assert retry_after(value, 0) == expected


def test_retry_after_dates() -> None:
    now = 1_800_000_000
    assert retry_after(email.utils.formatdate(now + 90, usegmt=True), now) == 90
    assert retry_after(email.utils.formatdate(now - 90, usegmt=True), now) == 0


@given(st.text(max_size=40))
def test_retry_after_takes_anything(value: str) -> None:
    found = retry_after(value, 0)
    assert found is None or found >= 0


def test_origins_compare_scheme_host_and_port() -> None:
    assert origin("https://Host/a") == origin("https://host:443/b?c")
    assert origin("https://host/") != origin("http://host/")
    assert origin("https://host/") != origin("https://host:8443/")
    assert origin("https://host/") != origin("https://host.evil/")


@pytest.mark.parametrize(
    "url",
    [
        "https://hub.evil/owner",
        "https://hub.example.evil/",
        "http://hub.example/x",
        "https://hub.example:444/x",
        "https://evil/?https://hub.example",
        "https://hub.example@evil/",
    ],
)
def test_the_token_goes_to_the_endpoint_only(url: str) -> None:
    hub = Hub("https://hub.example", TOKEN)
    assert hub.authorize(url) == {}
    assert hub.authorize("https://hub.example/any/thing") == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(hub)
    assert TOKEN not in str(hub)


def test_messages_are_scrubbed() -> None:
    text = f"GET https://user:password@host/x failed, Authorization: Bearer {TOKEN}, my-own-secret"
    clean = scrub(text, "my-own-secret", None)
    assert "password" not in clean
    assert "my-own-secret" not in clean
    assert TOKEN[3:] not in clean
    assert "host/x failed" in clean
    assert public_url("https://user:password@host:8443/a/b?X-Signature=s#f") == "https://host:8443/a/b"


@pytest.mark.parametrize(
    "head",
    [
        b"<!doctype html>",
        b"\xef\xbb\xbf<!DOCTYPE HTML>",
        b"\r\n <HTML lang=en>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_pages_and_pointers(head: bytes) -> None:
    with pytest.raises(FetchError) as caught:
        refuse_pages("https://host/owner/name/blob/main/model.pth", "application/octet-stream", head)
    assert caught.value.remedy
    if b"git-lfs" not in head:
        assert "/resolve/" in caught.value.remedy


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b'{"a": 1}', b"<", b"<htm", b"version 1", b"\x80\x02html"])
def test_files_are_no_pages(head: bytes) -> None:
    refuse_pages("x", "application/octet-stream", head)
    refuse_pages("x", None, head)


def test_mismatch_tells_both() -> None:
    assert mismatch("f", "a" * 64, 5, "a" * 64, 5) is None
    assert mismatch("f", "a" * 64, 5, None, None) is None
    assert "expected 6 bytes, got 5" in str(mismatch("f", "a" * 64, 5, "a" * 64, 6))
    assert f"expected sha256 {'b' * 64}, got {'a' * 64}" in str(mismatch("f", "a" * 64, 5, "b" * 64, 5))


def test_space(tmp_path: Path) -> None:
    need_space(tmp_path, 1, "f")
    with pytest.raises(StoreError, match="bytes are needed"):
        need_space(tmp_path, 1 << 62, "f")


SOURCE = "https://host/f"


def reopened(folder: Path, source: str = SOURCE) -> PartialFile:
    return PartialFile(folder / "f", source)


def test_a_part_goes_on_where_it_was(tmp_path: Path) -> None:
    with reopened(tmp_path) as part:
        part.describe(10, '"tag"')
        part.append(b"01234")
    with reopened(tmp_path) as part:
        assert (part.done, part.total, part.validator, part.resumed) == (5, 10, '"tag"', True)
        assert part.sha256 == hashlib.sha256(b"01234").hexdigest()
        part.append(b"56789")
        part.finish()
    assert (tmp_path / "f").read_bytes() == b"0123456789"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("note", [None, b"", b"{", b"[]", b'{"source": "https://other/f"}', b"\xff\xfe"])
def test_a_part_without_its_own_note_starts_again(tmp_path: Path, note: bytes | None) -> None:
    (tmp_path / "f.part").write_bytes(b"bytes of something")
    if note is not None:
        (tmp_path / "f.part.json").write_bytes(note)
    with reopened(tmp_path) as part:
        assert (part.done, part.resumed) == (0, False)
        part.describe(None, None)
        part.append(b"new")
        part.finish()
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_part_longer_than_its_object_starts_again(tmp_path: Path) -> None:
    with reopened(tmp_path) as part:
        part.describe(4, None)
        part.append(b"01234567")
    with reopened(tmp_path) as part:
        assert part.done == 0


def test_a_part_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with reopened(tmp_path) as part:
        part.describe(10, None)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=700), max_size=8), st.data())
def test_parts_add_up_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("part")
    whole = b"".join(chunks)
    part = reopened(folder).__enter__()
    for chunk in chunks:
        part.describe(len(whole), None)
        part.append(chunk)
        if data.draw(st.booleans()):
            part.__exit__()
            part = reopened(folder).__enter__()
    assert part.done == len(whole)
    assert part.head == whole[:512]
    part.finish()
    part.__exit__()
    assert (folder / "f").read_bytes() == whole


def test_targets() -> None:
    linux = Target("3.11", "linux-x86_64")
    assert linux.platforms[0] == "manylinux_2_28_x86_64"
    assert {"manylinux2014_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64", "linux_x86_64"} <= set(linux.platforms)
    assert "manylinux_2_29_x86_64" not in linux.platforms
    assert "manylinux1_aarch64" not in Target("3.11", "linux-aarch64").platforms
    assert Target("3.11", "macos-arm64").platforms[0] == "macosx_14_0_arm64"
    tags = list(map(str, linux.tags()))
    assert tags[0] == "cp311-cp311-manylinux_2_28_x86_64"
    assert {"cp38-abi3-manylinux2014_x86_64", "cp311-none-any", "py3-none-any"} <= set(tags)
    assert not any("cp312" in tag for tag in tags)
    for python, platform in (("3.11", "windows-x86_64"), ("2.7", "linux-x86_64"), ("3.11 --index", "linux-x86_64")):
        with pytest.raises(LockError):
            Target(python, platform)
