"""Publishing to a folder: complete or not at all, and nothing of the user's is lost."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import PublishError, StoreError
from rwkvflow.base.files import remove
from rwkvflow.base.hashing import file_digest, text_digest
from rwkvflow.publish.folder import is_intact, publish_folder
from rwkvflow.release.release import Release, assemble

REPORT = {
    "perplexity": 12.5,
    "perplexity_rise": 0.01,
    "logits": 0.02,
    "text_tokens": 512,
    "continuations": [{"prompt": "The ", "text": "cat `sat`\n| on"}],
}


def params(*entries: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "name": "demo",
        "entries": [
            {
                "id": f"{model}/{form}@{image}",
                "model": model,
                "format": form,
                "image": image,
                "file": f"{model}/{model}-{form}.bin",
                "extra": {},
            }
            for model, form, image in entries
        ],
        "models": {"m": {"source": "m.pth", "sha256": "0" * 64, "size": 5}},
        "images": {image: {"python": "3.11"} for _, _, image in entries},
        "engine": {"source": "builtin", "digest": None, "builds": {}},
        "worker": "sha256:" + "1" * 64,
        "lock": "sha256:" + "2" * 64,
    }


class Made:
    """Files as a run leaves them in the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs: dict[str, Path] = {}
        self.digests: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        path = self.root / hashlib.sha256(name.encode() + data).hexdigest()
        path.write_bytes(data)
        self.inputs[name] = path
        self.digests[name] = file_digest(path)

    def artifact(self, name: str, data: bytes) -> None:
        self.add(f"artifact/{name}", data)
        self.add(f"smoke/{name}", json.dumps(REPORT).encode())

    def release(self, *entries: tuple[str, str, str]) -> Release:
        local = {"lock": "version: 1\n", "recipe": "name: demo\n"}
        return assemble(params(*entries), self.inputs, self.digests, local)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "store").mkdir()
    return Made(tmp_path / "store")


def publish(release: Release, target: Path, key: str = "k") -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    publish_folder(release, target, key=key, on_bytes=lambda done, total: told.append((done, total)))
    return told


def files_of(target: Path) -> dict[str, bytes]:
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}


def test_a_release_holds_artifacts_sums_lock_provenance_and_a_card(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    target = tmp_path / "out" / "demo"
    told = publish(made.release(("m", "q", "i")), target)
    files = files_of(target)
    assert set(files) == {
        "m/m-q.bin",
        "m/smoke/m-q.bin.json",
        "recipe.yaml",
        "recipe.lock.yaml",
        "provenance.json",
        "quality.json",
        "catalogue.json",
        "sbom.cdx.json",
        "README.md",
        "SHA256SUMS",
        ".rwkvflow.json",
    }
    assert told[-1][0] == told[-1][1]
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, path = line.split("  ")
        assert hashlib.sha256(files[path]).hexdigest() == digest
    assert len(files["SHA256SUMS"].splitlines()) == len(files) - 2
    assert "`cat 'sat' | on`" in files["README.md"].decode()
    assert is_intact(target, "k")
    assert not is_intact(target, "other")


def test_publishing_twice_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    publish(made.release(("m", "q", "i")), tmp_path / "a")
    publish(made.release(("m", "q", "i")), tmp_path / "b")
    a, b = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    del a[".rwkvflow.json"], b[".rwkvflow.json"]
    assert a == b


def test_a_new_release_replaces_the_old_one_and_keeps_unchanged_files(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    made.artifact("m/r@i", b"others")
    target = tmp_path / "demo"
    publish(made.release(("m", "q", "i"), ("m", "r", "i")), target)
    inode = (target / "m" / "m-q.bin").stat().st_ino
    publish(made.release(("m", "q", "i")), target, "k2")
    assert (target / "m" / "m-q.bin").stat().st_ino == inode, "it was linked, not copied"
    assert not (target / "m" / "m-r.bin").exists()
    assert [path.name for path in tmp_path.iterdir() if "rwkvflow-" in path.name] == []


def test_a_file_that_was_deleted_or_edited_is_noticed_and_restored(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    target = tmp_path / "demo"
    release = made.release(("m", "q", "i"))
    publish(release, target)
    (target / "m" / "m-q.bin").unlink()
    assert not is_intact(target, "k")
    publish(release, target)
    (target / "m" / "m-q.bin").chmod(0o644)
    (target / "m" / "m-q.bin").write_bytes(b"edited!")
    assert not is_intact(target, "k")
    publish(release, target)
    assert (target / "m" / "m-q.bin").read_bytes() == b"weights"
    assert is_intact(target, "k")


def test_a_failed_smoke_stops_only_its_own_artifact(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    made.add("artifact/m/r@i", b"others")
    release = made.release(("m", "q", "i"), ("m", "r", "i"))
    assert [row.path for row in release.rows] == ["m/m-q.bin"]
    assert release.left_out == {"m/r@i": "it did not pass its smoke"}
    publish(release, tmp_path / "demo")
    assert "m/r@i" in (tmp_path / "demo" / "README.md").read_text()


def test_images_that_disagree_keep_an_artifact_from_being_published(made: Made) -> None:
    made.artifact("m/q@i", b"weights")
    made.artifact("m/q@j", b"weightz")
    made.artifact("m/r@i", b"same")
    made.artifact("m/r@j", b"same")
    release = made.release(("m", "q", "i"), ("m", "q", "j"), ("m", "r", "i"), ("m", "r", "j"))
    assert [(row.path, row.images) for row in release.rows] == [("m/m-r.bin", ("i", "j"))]
    assert set(release.left_out) == {"m/q@i", "m/q@j"}
    assert "not reproducible" in release.left_out["m/q@i"]


def test_nothing_to_publish_is_an_error_with_reasons(made: Made) -> None:
    with pytest.raises(PublishError, match=r"m/q@i: it was not converted"):
        made.release(("m", "q", "i"))


def test_a_folder_with_files_of_the_users_is_never_replaced(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(PublishError, match="did not publish"):
        publish(made.release(("m", "q", "i")), tmp_path / "thesis")
    assert files_of(tmp_path / "thesis") == {"chapter1.tex": b"years of work"}
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    with pytest.raises(PublishError, match="not a folder"):
        publish(made.release(("m", "q", "i")), tmp_path / "link")


def test_a_damaged_blob_stops_publishing_and_the_old_release_stays(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    target = tmp_path / "demo"
    publish(made.release(("m", "q", "i")), target)
    before = files_of(target)
    made.artifact("m/r@i", b"others")
    release = made.release(("m", "q", "i"), ("m", "r", "i"))
    made.inputs["artifact/m/r@i"].write_bytes(b"0thers")
    with pytest.raises(StoreError, match="not what they were"):
        publish(release, target, "k2")
    assert files_of(target) == before
    assert is_intact(target, "k")


def test_without_an_atomic_exchange_it_still_ends_right(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    made.artifact("m/q@i", b"weights")
    publish(made.release(("m", "q", "i")), tmp_path / "demo")
    made.artifact("m/r@i", b"others")
    publish(made.release(("m", "q", "i"), ("m", "r", "i")), tmp_path / "demo", "k2")
    assert is_intact(tmp_path / "demo", "k2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "store"]


def test_what_a_killed_run_left_beside_it_is_removed(made: Made, tmp_path: Path) -> None:
    made.artifact("m/q@i", b"weights")
    (tmp_path / ".demo.rwkvflow-dead").mkdir()
    publish(made.release(("m", "q", "i")), tmp_path / "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "store"]
    remove(tmp_path / "demo")


def test_left_out_reasons_do_not_break_the_card(made: Made) -> None:
    made.artifact("m/q@i", b"weights")
    release = made.release(("m", "q", "i"))
    card = next(file for file in release.files if file.path == "README.md")
    assert isinstance(card.source, bytes)
    assert text_digest(card.source) == card.digest


def test_another_recipes_release_is_not_replaced(made: Made, tmp_path: Path) -> None:
    """By the marker's word, and by the statement's where the release was downloaded."""
    made.artifact("m/q@i", b"weights")
    publish(made.release(("m", "q", "i")), tmp_path / "demo")
    other = replace(made.release(("m", "q", "i")), name="other")
    before = {path.name: path.read_bytes() for path in (tmp_path / "demo").glob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(PublishError, match="holds the release demo, and this recipe's is other"):
            publish(other, tmp_path / "demo")
        (tmp_path / "demo/.rwkvflow.json").unlink(missing_ok=True)
    del before[".rwkvflow.json"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "demo").glob("*") if path.is_file()} == before


@pytest.mark.parametrize("downloaded", [False, True])
def test_what_a_user_added_to_a_release_stays(made: Made, tmp_path: Path, downloaded: bool) -> None:
    """Files, folders, links and modes; whether the folder's marker or the list of checksums tells what is ours."""
    made.artifact("m/q@i", b"weights")
    made.artifact("m/r@i", b"others")
    target = tmp_path / "demo"
    publish(made.release(("m", "q", "i"), ("m", "r", "i")), target)
    (target / "notes.txt").write_text("mine")
    (target / "notes.txt").chmod(0o600)
    (target / ".git" / "refs").mkdir(parents=True)
    (target / ".git" / "HEAD").write_text("ref: main")
    (target / "m" / "my.bin").write_bytes(b"my own")
    (target / "m" / "m-q.bin.txt").symlink_to("m-q.bin")
    (target / "nowhere").symlink_to("/nowhere")
    if downloaded:
        (target / ".rwkvflow.json").unlink()
    del made.inputs["artifact/m/r@i"]
    publish(made.release(("m", "q", "i")), target, "k2")
    assert not (target / "m" / "m-r.bin").exists(), "what an earlier release put there goes"
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "notes.txt").stat().st_mode & 0o777 == 0o600
    assert (target / "notes.txt").stat().st_nlink == 1
    assert (target / ".git" / "HEAD").read_text() == "ref: main"
    assert (target / ".git" / "refs").is_dir()
    assert (target / "m" / "my.bin").read_bytes() == b"my own"
    assert str((target / "m" / "m-q.bin.txt").readlink()) == "m-q.bin"
    assert str((target / "nowhere").readlink()) == "/nowhere"
    assert is_intact(target, "k2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "store"]


@pytest.mark.parametrize("what", ["a file of the release's", "a file where it has a folder", "a folder", "a pipe"])
def test_a_users_file_where_the_release_has_one_is_refused_by_name(made: Made, tmp_path: Path, what: str) -> None:
    made.artifact("m/q@i", b"weights")
    target = tmp_path / "demo"
    publish(made.release(("m", "q", "i")), target)
    name = {"a file where it has a folder": "n", "a pipe": "pipe"}.get(what, "n/n-q.bin")
    place = target / name
    place.parent.mkdir(exist_ok=True)
    if what == "a folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif what == "a pipe":
        os.mkfifo(place)
    else:
        place.write_text("mine")
    made.artifact("n/q@i", b"new")
    with pytest.raises(PublishError, match=rf"holds {name}, which rwkvflow did not publish"):
        publish(made.release(("m", "q", "i"), ("n", "q", "i")), target, "k2")
    assert os.path.lexists(place)
    assert is_intact(target, "k")
