"""The one parser of source strings."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.documents.pages import without_page
from rwkvflow.documents.sources import (
    HubSource,
    LocalSource,
    SourceError,
    WebSource,
    git_url,
    parse_repository,
    parse_source,
    source_problem,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("page", "meant"),
    [
        ("https://huggingface.co/owner/name", "hf://owner/name"),
        ("https://huggingface.co/owner/name/", "hf://owner/name"),
        ("huggingface.co/owner/name/blob/main/a/b%20c.pth", "hf://owner/name/a/b c.pth"),
        ("https://hf.co/owner/name/tree/main", "hf://owner/name"),
        ("https://huggingface.co/owner/name/tree/v1/sub", "hf://owner/name@v1/sub"),
        ("https://huggingface.co/owner/name/resolve/main/m.pth?download=true", "hf://owner/name/m.pth"),
        (f"https://www.huggingface.co/owner/name/blob/{COMMIT}/m.pth#L1", f"hf://owner/name@{COMMIT}/m.pth"),
        ("https://huggingface.co/datasets/owner", "https://huggingface.co/datasets/owner"),
        ("https://huggingface.co/owner/name/discussions/1", "https://huggingface.co/owner/name/discussions/1"),
        ("https://example.org/owner/name/blob/main/m.pth", "https://example.org/owner/name/blob/main/m.pth"),
        ("hf://owner/name/m.pth", "hf://owner/name/m.pth"),
    ],
)
def test_a_page_of_the_hub_means_what_it_is_about(page: str, meant: str) -> None:
    assert without_page(page) == meant
    assert without_page(meant) == meant


def test_a_page_is_no_source_of_a_recipe() -> None:
    problem = source_problem("https://huggingface.co/owner/name/blob/main/m.pth")
    assert problem is not None
    assert "write hf://owner/name/m.pth" in problem
    assert source_problem("https://huggingface.co/owner/name/resolve/main/m.pth") is None
    assert source_problem("https://example.org/owner/name/blob/main/m.pth") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/name/model.pth", HubSource("owner/name", "model.pth")),
        ("hf://owner/name@v1.0/a/b.pth", HubSource("owner/name", "a/b.pth", "v1.0")),
        (f"hf://owner/name@{COMMIT}/m", HubSource("owner/name", "m", COMMIT)),
        ("hf://owner/name@refs/pr/3/m.pth", HubSource("owner/name", "m.pth", "refs/pr/3")),
        ("hf://owner/name@feature%2Fx/m.pth", HubSource("owner/name", "m.pth", "feature/x")),
        ("https://host/a.pth?download=1", WebSource("https://host/a.pth?download=1")),
        ("https://host/a.pth#part", WebSource("https://host/a.pth")),
        ("http://127.0.0.1:8000/a", WebSource("http://127.0.0.1:8000/a")),
        ("http://localhost/a", WebSource("http://localhost/a")),
        ("file:a%20b.pth", LocalSource("a b.pth")),
        ("file:///data/m.pth", LocalSource("/data/m.pth")),
        ("file://localhost/data/m.pth", LocalSource("/data/m.pth")),
        ("models/m.pth", LocalSource("models/m.pth")),
        ("../m.pth", LocalSource("../m.pth")),
        ("./with:colon.pth", LocalSource("./with:colon.pth")),
    ],
)
def test_understood(text: str, expected: object) -> None:
    assert parse_source(text) == expected
    assert source_problem(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (" model.pth", "spaces around"),
        ("a\nb", "U\\+000A"),
        ("a\x00b", "U\\+0000"),
        ("hf:owner/name/file", "lacks the //"),
        ("HF://owner/name/file", "lower case: hf://"),
        ("htps://host/file", "unknown scheme 'htps://'.*did you mean 'https'"),
        ("s3://bucket/key", "unknown scheme"),
        ("hf://owner/name", "names no file of a repository"),
        ("hf://owner/name/", "must name a file"),
        ("hf://owner/name/../x", "without empty parts"),
        ("hf://owner/name/a//x", "without empty parts"),
        ("hf://owner/-name/x", "not a hub name"),
        ("hf://own er/name/x", "not a hub name"),
        ("hf://datasets/owner/name/x", "only model repositories"),
        ("hf://owner/name@/x", "not a revision"),
        ("hf://owner/name@a..b/x", "not a revision"),
        ("hf://owner/name@--upload/x", "not a revision"),
        ("https:///file", "no host"),
        ("https://host", "no file"),
        ("https://host/", "no file"),
        ("https://host:port/file", "not a URL"),
        ("https://[::1/file", "not a URL"),
        ("https://user@host/file", "end up in the lock"),
        ("https://user:secret@host/file", "end up in the lock"),
        ("https://host/a b", "%20"),
        ("http://example.com/file", "use https://"),
        ("http://127.0.0.1.example.com/file", "use https://"),
        ("file://server/share/file", "with the host 'server'"),
        ("file:", "no file"),
        ("file:///", "no file"),
        ("file:a%00b", "U\\+0000"),
        ("models/", "names a folder"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        parse_source(text)
    assert source_problem(text) == str(caught.value)


def test_messages_repeat_no_password() -> None:
    assert "secret" not in str(source_problem("https://user:secret@host/file"))
    with pytest.raises(SourceError) as caught:
        git_url("https://user:secret@host/repo.git")
    assert "secret" not in str(caught.value)


def test_local_paths_start_at_the_recipe() -> None:
    assert LocalSource("m.pth").below(Path("/recipes")) == Path("/recipes/m.pth")
    assert LocalSource("/data/m.pth").below(Path("/recipes")) == Path("/data/m.pth")
    assert LocalSource("~/m.pth").below(Path("/recipes")) == Path.home() / "m.pth"


def test_pinned_is_a_full_commit() -> None:
    assert HubSource("o/n", "p").at(COMMIT).pinned
    assert not HubSource("o/n", "p", COMMIT[:12]).pinned
    assert not HubSource("o/n", "p").pinned


def test_repositories() -> None:
    assert parse_repository("hf://owner/name") == ("owner/name", None)
    assert parse_repository("hf://owner/name@main") == ("owner/name", "main")
    for text in ("owner/name", "hf://owner", "hf://owner/name/file", "hf://owner/name@"):
        with pytest.raises(SourceError):
            parse_repository(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/repo.git",
        "ssh://git@host:22/repo",
        "git@host:owner/repo.git",
        "file:///srv/repo",
        "../repo",
        "/srv/repo",
        "./a:b",
    ],
)
def test_git_urls(text: str) -> None:
    assert git_url(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "--upload-pack=x",
        "ext::sh -c x",
        "git://host/repo",
        "http://host/repo",
        "ftp://host/repo",
        "ssh://-oProxyCommand=x/repo",
        "https://token@host/repo",
        "https:///repo",
        "host:-option",
        "a\nb",
    ],
)
def test_git_urls_refused(text: str) -> None:
    with pytest.raises(SourceError):
        git_url(text)


@given(st.text(alphabet=string.printable + "\x00\u202eé", max_size=60))
def test_any_text_is_a_source_or_a_source_error(text: str) -> None:
    problem = source_problem(text)  # raises what is no SourceError
    if problem is None:
        assert isinstance(parse_source(text), HubSource | WebSource | LocalSource)
    else:
        assert problem.strip()


PART = st.text(string.ascii_letters + string.digits + "._ @%+-", min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..") and part == part.strip()
)
NAME = st.from_regex(r"[A-Za-z0-9](_?[A-Za-z0-9]){0,10}", fullmatch=True)
REVISION = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,10}(/[a-z0-9]{1,5}){0,2}", fullmatch=True).filter(
    lambda revision: ".." not in revision
)


@given(NAME, NAME, st.none() | REVISION, st.lists(PART, min_size=1, max_size=3))
def test_hub_sources_survive_a_round_trip(owner: str, name: str, revision: str | None, parts: list[str]) -> None:
    source = HubSource(f"{owner}/{name}", "/".join(parts), revision)
    if owner not in ("models", "datasets", "spaces", "buckets"):
        assert parse_source(str(source)) == source
