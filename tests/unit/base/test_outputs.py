"""What commands may write over: nothing without --force; with it files and rwkvflow's own folders; never a source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.base.errors import UsageError
from rwkvflow.base.files import remove
from rwkvflow.base.outputs import check_output, mark, put, write_text
from rwkvflow.cli import cli
from tests.helpers import checkpoints


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below a folder, with what is in it."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return checkpoints.make(tmp_path / "in/m.pth", "7", "bf16", layers=1, width=64, vocab=64)


#: Names of an output that are the source `in/m.pth`, or hold it, by some way.
WAYS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda top: top / "in/m.pth",
    "a path with ..": lambda top: top / "in/../in/m.pth",
    "a path through a linked folder": lambda top: link(top / "way", "in") / "m.pth",
    "a link": lambda top: link(top / "alias.bin", "in/m.pth"),
    "a link to a link": lambda top: link(top / "second.bin", link(top / "first.bin", "in/m.pth").name),
    "an absolute link": lambda top: link(top / "alias.bin", str(top / "in/m.pth")),
    "a second name": lambda top: hard(top / "second.bin", top / "in/m.pth"),
    "a folder of rwkvflow's around it": lambda top: marked(top / "in"),
    "a link to such a folder": lambda top: link(top / "own", marked(top / "in").name),
}


def link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def hard(path: Path, target: Path) -> Path:
    path.hardlink_to(target)
    return path


def marked(folder: Path) -> Path:
    mark(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_source_is_never_an_output(way: str, model: Path, tmp_path: Path) -> None:
    target = WAYS[way](tmp_path)
    before = tree(tmp_path)
    (tmp_path / "library.so").touch()
    for force in (True, False):
        with pytest.raises(UsageError):
            check_output(target, [model], force=force)
        if not target.is_dir():
            with pytest.raises(UsageError):
                write_text(target, "text", [model], force=force)
        words = ["convert", model, target, "--format", "ggml-f16", "--library", tmp_path / "library.so"]
        result = CliRunner().invoke(cli, [str(word) for word in [*words, *(["--force"] if force else [])]])
        assert isinstance(result.exception, UsageError), result.output
    (tmp_path / "library.so").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("role", ["--lora", "--state", "--library"])
def test_what_goes_along_is_a_source_too(role: str, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"mine")
    more = ["--alpha", "2"] if role == "--lora" else []
    words = ["convert", model, other, "--format", "ggml-f16", role, other, *more, "--force"]
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(result.exception, UsageError)
    assert "read from" in result.exception.message
    assert other.read_bytes() == b"mine"


def test_a_file_of_a_split_source_is_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    whole = checkpoints.make(folder / "model.safetensors", "7", "bf16", layers=1, width=64, vocab=64)
    (folder / "config.json").write_text("{}")
    before = tree(tmp_path)
    for target in (whole, folder / "config.json"):
        words = ["convert", folder, target, "--format", "ggml-f16", "--force"]
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert isinstance(result.exception, UsageError)
        assert "read from" in result.exception.message
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300 + ".bin", "я" * 128 + ".bin", "new/" + "x" * 256, "x" * 300 + "/new/m.bin"])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(name: str, model: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    done = CliRunner().invoke(
        cli, ["convert", str(model), str(tmp_path / name), "--format", "safetensors", "--no-check"]
    )
    assert isinstance(done.exception, UsageError)
    assert "too long" in str(done.exception)
    assert "shorter" in (done.exception.remedy or "")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 251 + ".bin", "new/deep/m.bin"])
def test_folders_on_the_way_may_be_missing(name: str, tmp_path: Path) -> None:
    check_output(tmp_path / name, (), force=False)


@pytest.mark.parametrize("name", ["in/m.pth/m.bin", "in/m.pth/new/m.bin", "gone/m.bin"])
@pytest.mark.parametrize("force", [False, True])
def test_no_file_is_written_below_what_is_no_folder(name: str, force: bool, model: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="is no folder") as caught:
        check_output(tmp_path / name, (), force=force)
    assert str(tmp_path / name) in caught.value.message
    remove(tmp_path / name)  # what would have been there is not, which is no fault
    assert tree(tmp_path) == before


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write everywhere
    with pytest.raises(UsageError, match="cannot be written to"):
        check_output(tmp_path / "new/m.bin", (), force=False)


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(UsageError):
            check_output(folder, [], force=force)
    (folder / ".rwkvflow.json").write_text('{"key": "of a release"}')
    with pytest.raises(UsageError, match="did not write"):
        check_output(folder, [], force=True)
    (folder / ".rwkvflow.json").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("extra", ["notes.txt", "deep/notes.txt", "empty/", "link"])
def test_a_marked_folder_with_something_of_the_users_is_not_replaced(extra: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a.bin").write_bytes(b"a")
    mark(folder)
    check_output(folder, [], force=True)
    with pytest.raises(UsageError, match="exists already"):
        check_output(folder, [], force=False)
    if extra == "link":
        (folder / extra).symlink_to("/")
    elif extra.endswith("/"):
        (folder / extra).mkdir()
    else:
        (folder / extra).write_text("mine")
    with pytest.raises(UsageError, match=extra.rstrip("/")):
        check_output(folder, [], force=True)


def test_put_takes_the_place_of_whatever_was_let_go(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    for old in ("file", "folder", "link to a folder", "nothing"):
        for new in ("file", "folder"):
            target, fresh = tmp_path / "target", tmp_path / "fresh"
            if old == "file":
                target.write_text("old")
            elif old == "folder":
                target.mkdir()
                (target / "old").write_text("old")
            elif old == "link to a folder":
                target.symlink_to("outside")
            if new == "folder":
                fresh.mkdir()
                (fresh / "new").write_text("new")
            else:
                fresh.write_text("new")
            put(fresh, target)
            assert not fresh.exists()
            assert not target.is_symlink()
            assert (target / "new" if new == "folder" else target).read_text() == "new"
            if new == "folder":
                (target / "new").unlink()
                target.rmdir()
            else:
                target.unlink()
    assert (outside / "keep").read_text() == "keep"


def test_text_goes_through_a_link_and_into_a_device(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    write_text(tmp_path / "link.html", "new", [], force=True)
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text() == "new"
    write_text(Path("/dev/null"), "text", [], force=True)
    assert not Path("/dev/null").is_file()
    (tmp_path / "nowhere").symlink_to("absent")
    with pytest.raises(UsageError, match="exists already"):
        write_text(tmp_path / "nowhere", "text", [], force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "nowhere", "real.html"]


RECIPE = """\
name: demo
models: [{name: demo, source: m.pth, tokenizer: bytes}]
formats: [ggml-f16]
image: {python: "3.11"}
"""


@pytest.mark.parametrize("words", [["ci", "github"], ["ci", "gitlab"], ["report"], ["init"]])
def test_commands_that_write_text_spare_what_they_read(words: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "again.yaml").hardlink_to(recipe)
    (tmp_path / "alias.yaml").symlink_to("demo.yaml")
    if words == ["report"]:
        recipe = tmp_path / "run.jsonl"
        recipe.write_text('{"at": 1, "event": "RunStarted", "recipe": "x", "sandbox": "host", "steps": 1, "why": ""}\n')
        (tmp_path / "again.yaml").unlink()
        (tmp_path / "again.yaml").hardlink_to(recipe)
        (tmp_path / "alias.yaml").unlink()
        (tmp_path / "alias.yaml").symlink_to("run.jsonl")
    before = tree(tmp_path)
    for target in (recipe, tmp_path / "again.yaml", tmp_path / "alias.yaml"):
        more = ["--store", str(tmp_path / "store")] if words == ["report"] else []
        result = CliRunner().invoke(cli, [*words, str(recipe), "-o", str(target), *more])
        assert isinstance(result.exception, UsageError), result.output
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("store")} == before
