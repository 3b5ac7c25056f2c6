"""Where releases go: the texts that name places, and what of them needs no network."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.app import pipeline
from rwkvflow.base.errors import EnvironmentMissing, PublishError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.destinations import (
    REMOTE,
    Destination,
    FolderDestination,
    HubDestination,
    OciDestination,
    RemoteDestination,
    parse_destination,
)
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.sources import SourceError
from rwkvflow.net.oci_registry import credentials
from rwkvflow.net.progress import Told
from rwkvflow.publish import oci
from rwkvflow.publish.hub import git_blob_id, lfs_attributes, weight_suffixes
from rwkvflow.publish.oci import OciPublisher, manifest_bytes
from rwkvflow.publish.places import publisher as opened
from rwkvflow.publish.places import refuse_missing_packages
from rwkvflow.release.release import Release
from tests.helpers.publishing import release


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", FolderDestination("out")),
        ("file:///srv/a%20b", FolderDestination("/srv/a b")),
        ("file:out", FolderDestination("out")),
        ("hf://owner/name", HubDestination("owner/name")),
        ("hf://owner/name@next%2Fone", HubDestination("owner/name", "next/one")),
        ("oci://ghcr.io/me/models/tiny:v1.0", OciDestination("ghcr.io", "me/models/tiny", "v1.0")),
        ("oci://127.0.0.1:5000/tiny:latest", OciDestination("127.0.0.1:5000", "tiny", "latest")),
        ("oci://[::1]:5000/tiny:latest", OciDestination("[::1]:5000", "tiny", "latest")),
        ("s3://bucket/folder/", RemoteDestination("s3://bucket/folder")),
        ("sftp://me@host/folder", RemoteDestination("sftp://me@host/folder")),
    ],
)
def test_places(text: str, expected: Destination) -> None:
    assert parse_destination(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " out", "out\n", "hf://", "hf://a", "hf://a/b/c", "hf://a/b@refs/pr/1", "hf://a/b@" + "0" * 40),
        *("oci://", "oci://ghcr.io", "oci://ghcr.io/a", "oci://ghcr.io/a:", "oci://ghcr.io/a:v 1", "oci://x_y/a:v1"),
        *("oci://ghcr.io/a@sha256:00", "oci://ghcr.io/../a:v1", "oci://ghcr.io/a//b:v1", "oci://ghcr.io/a:-v1"),
        *("s3://", "s3:///a", "s3://bucket/../other", "s3://bucket/a?versionId=1", "s3://a:b@bucket/c", "memory://a"),
        *("file://host/a", "file:", "http://host/a", "github://a/b", "S3://bucket/a", "hf:a/b"),
    ],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(SourceError):
        parse_destination(text)


@given(st.text() | st.from_regex(r"(hf|oci|s3|file)://[a-z0-9/:@.%?-]{0,30}", fullmatch=True))
def test_any_text_is_a_place_or_an_error(text: str) -> None:
    try:
        place = parse_destination(text)
    except SourceError:
        return
    if not isinstance(place, FolderDestination):
        assert parse_destination(str(place)) == place


@pytest.mark.parametrize(
    ("registry", "secure"),
    [
        ("ghcr.io", True),
        ("localhost:5000", False),
        ("127.0.0.9", False),
        ("[::1]:5000", False),
        ("localhost.org", True),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(registry: str, secure: bool) -> None:
    assert OciDestination(registry, "a", "v1").secure is secure


def test_fsspec_knows_the_protocols() -> None:
    import fsspec

    assert set(REMOTE) <= set(fsspec.available_protocols())


def test_attributes_keep_what_stands_there() -> None:
    mine = b"# mine\n*.bin filter=lfs diff=lfs merge=lfs -text\n*.txt eol=lf"
    made = lfs_attributes(mine)
    assert made.startswith(mine + b"\n")
    assert made.count(b"*.bin ") == 1
    assert lfs_attributes(made) == made
    assert all(f"*{suffix} filter=lfs".encode() in made for suffix in weight_suffixes())


def test_git_names_blobs_so() -> None:
    import subprocess

    file = release({"a.txt": b"some text\n"}).files[0]
    assert isinstance(file.source, bytes)
    done = subprocess.run(["git", "hash-object", "--stdin"], input=file.source, capture_output=True, check=True)
    assert git_blob_id(file) == done.stdout.decode().strip()


def test_equal_releases_have_equal_manifests() -> None:
    files = {"b/b.bin": b"b", "a.json": b"{}"}
    assert manifest_bytes(release(files)) == manifest_bytes(release(dict(reversed(files.items()))))
    assert manifest_bytes(release(files)) != manifest_bytes(release({**files, "a.json": b"[]"}))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (release({"a.bin": b"a"}, name="other"), "holds the release other, and this recipe's is tiny"),
        (None, "is no model but application/vnd.oci.image.manifest.v1"),
    ],
)
def test_a_tag_that_names_something_else_stays(
    monkeypatch: pytest.MonkeyPatch, there: Release | None, words: str
) -> None:
    """Another recipe's release, or an image; nothing is uploaded before that is known."""
    image = b'{"mediaType": "application/vnd.oci.image.manifest.v1+json"}'
    data = image if there is None else manifest_bytes(there)

    class Registry:
        def __init__(self, *told: object) -> None: ...
        def __enter__(self) -> Registry:
            return self

        def __exit__(self, *told: object) -> None: ...
        def manifest(self, tag: str) -> tuple[str, object]:
            return text_digest(data), json.loads(data)

    monkeypatch.setattr(oci, "OciRegistry", Registry)
    place = OciPublisher(OciDestination("registry.example", "a/b", "v1"))
    for attempt in (
        lambda: place.plan(release({"a.bin": b"b"})),
        lambda: place.apply(release({"a.bin": b"b"}), Told()),
    ):
        with pytest.raises(PublishError, match=words):
            attempt()


def test_logins_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert credentials("ghcr.io") is None
    helper = tmp_path / "docker-credential-mine"
    helper.write_text('#!/bin/sh\nread name\necho "{\\"Username\\": \\"u\\", \\"Secret\\": \\"of $name\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    auth = base64.b64encode(b"me:pass:word").decode()
    config = {
        "auths": {"ghcr.io": {"auth": auth}, "odd": {"auth": 3}, "bad": {"auth": "%%%"}, "empty": {}},
        "credHelpers": {"helped": "mine", "evil": "../mine", "absent": "nothing"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert credentials("ghcr.io") == ("me", "pass:word")
    assert credentials("helped") == ("u", "of helped")
    for name in ("odd", "bad", "empty", "evil", "absent", "other"):
        assert credentials(name) is None
    (tmp_path / "config.json").write_text("{")
    assert credentials("ghcr.io") is None


def test_a_folder_says_what_would_change(tmp_path: Path) -> None:
    place = parse_destination("out/./x/..")
    publisher = opened({"to": str(place)}, tmp_path, "key")
    old, new = {"a.bin": b"a", "gone.bin": b"g"}, {"a.bin": b"A", "more.bin": b"m"}
    assert {change.kind for change in publisher.plan(release(old)).changes} == {"add"}
    assert publisher.apply(release(old), Told()).to == str(tmp_path / "out")
    assert publisher.plan(release(old)).changes == ()
    kinds = {change.path: change.kind for change in publisher.plan(release(new)).changes}
    assert kinds.pop("provenance.json") == kinds.pop("SHA256SUMS") == "replace"
    assert kinds == {"a.bin": "replace", "more.bin": "add", "gone.bin": "delete"}


@pytest.mark.parametrize(
    ("to", "absent", "remedy"),
    [
        ("s3://bucket/x", "s3fs", "pip install 'rwkvflow[s3]'"),
        ("gs://bucket/x", "gcsfs", "pip install gcsfs"),
        ("out", "model_signing", "pip install 'rwkvflow[sign]'"),
    ],
)
def test_what_a_place_or_a_signature_needs_is_told_before_the_work(
    to: str, absent: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k.pem").write_text("")
    text = f"name: x\nmodels: [{{name: a, source: a.pth}}]\nformats: [ggml-f16]\npublish: [{{to: '{to}'}}]\n"
    recipe = recipe_from_text(text + "sign: {key: k.pem}\n", "recipe.yaml", tmp_path)
    monkeypatch.setattr("rwkvflow.publish.places.find_spec", lambda name: None if name == absent else name)
    if absent == "model_signing":
        monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(EnvironmentMissing) as caught:
        refuse_missing_packages(recipe)
    assert absent in str(caught.value)
    assert caught.value.remedy == remedy


def test_a_run_asks_that_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any event, with nothing of the run looked at but its plan and its recipe."""
    step = SimpleNamespace(stage="publish")
    prepared = SimpleNamespace(plan=[step], store=None, blueprint=SimpleNamespace(recipe="the recipe"))
    asked: list[object] = []

    def refuse(recipe: object) -> None:
        asked.append(recipe)
        raise EnvironmentMissing("no")

    monkeypatch.setattr("rwkvflow.publish.places.refuse_missing_packages", refuse)
    with pytest.raises(EnvironmentMissing):
        pipeline._execute(prepared, asked.append, None, None, None)  # type: ignore[arg-type]
    assert asked == ["the recipe"]
