"""Recipes to start from: those that ship are listed, copied with what they need, and are right where they land."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.app import starts
from rwkvflow.base.errors import UsageError
from rwkvflow.documents.load import load_recipe


def test_every_recipe_that_ships_says_what_it_is_for() -> None:
    found = starts.recipes()
    assert {"demo", "rwkv7-g1", "rwkv4-pile"} <= found.keys()
    assert all(len(purpose) > 15 for purpose in found.values()), found


def test_a_lock_beside_a_recipe_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo.yaml", "demo.lock.yaml"):
        (tmp_path / name).write_text("# What it is. More.\n")
    monkeypatch.setattr(starts, "shipped", lambda name: tmp_path)
    assert starts.recipes() == {"demo": "What it is"}


@pytest.mark.parametrize("name", starts.recipes())
def test_a_copied_recipe_is_whole_and_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    written = starts.copy_recipe(name, tmp_path / "mine.yaml")
    assert written[0] == tmp_path / "mine.yaml"
    recipe = load_recipe(written[0])
    assert recipe.name
    for model in recipe.models:
        assert model.source.startswith("hf://") or (tmp_path / model.source).is_file(), model.source
    assert "../" not in written[0].read_text().replace("://", "")


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "rwkv4-demo.pth").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        starts.copy_recipe("demo", tmp_path / "demo.yaml")
    assert not (tmp_path / "demo.yaml").exists()
    assert (tmp_path / "demo" / "rwkv4-demo.pth").read_text() == "mine"
    (tmp_path / "other.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        starts.copy_recipe("rwkv7-g1", tmp_path / "other.yaml")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UsageError) as error:
        starts.copy_recipe("rwkv7-g2", Path("x.yaml"))
    assert "did you mean rwkv7-g1?" in str(error.value.remedy)
    with pytest.raises(UsageError) as error:
        starts.copy_recipe("llama", Path("x.yaml"))
    assert "rwkv7-g1" in str(error.value.remedy)


def test_a_bare_repository_is_one_of_the_hub_unless_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert starts.source_meant("BlinkDL/rwkv-7-world") == "hf://BlinkDL/rwkv-7-world"
    assert starts.source_meant("a/b/c.pth") == "a/b/c.pth"
    (tmp_path / "BlinkDL" / "rwkv-7-world").mkdir(parents=True)
    assert starts.source_meant("BlinkDL/rwkv-7-world") == "BlinkDL/rwkv-7-world"
