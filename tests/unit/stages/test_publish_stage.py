"""The publish step: everything that can change a byte of a release is in its key, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.lock.outside import named_files
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.step import LocalInput, Step
from rwkvflow.stages import publish
from rwkvflow.stages.blueprint import Blueprint
from tests.helpers.releases import RECIPE, lock_of, zeros
from tests.unit.documents.test_recipe_hostile import PLACES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    zeros(tmp_path / "models" / "tiny4.safetensors", "4")
    (tmp_path / "card.md.j2").write_text("# {{ name }}\n")
    (tmp_path / "sign.key").write_text("not read before publishing")
    return tmp_path


def blueprint(folder: Path, more: str = "", text: str = RECIPE) -> Blueprint:
    """A recipe, ready to be planned."""
    path = folder / "recipe.yaml"
    path.write_text(text + more, encoding="utf-8")
    checkpoint = folder / "models" / "tiny4.safetensors"
    recipe = recipe_from_text(text + more, str(path), folder)
    return Blueprint(
        recipe=recipe,
        recipe_path=path,
        workflow=load_workflow(),
        workflow_path=path,
        lock=lock_of(
            {"tiny7": ("hf://someone/tiny7/tiny7.safetensors", checkpoint), "tiny4": ("models/x", checkpoint)}
        ),
        sandbox="host",
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )


def step(folder: Path, more: str = "", text: str = RECIPE) -> Step:
    """The publish step of a recipe."""
    (found,) = publish.steps(blueprint(folder, more, text))
    return found


def test_it_carries_recipe_and_lock_and_their_digests(folder: Path) -> None:
    found = step(folder)
    assert found.local["recipe"] == RECIPE
    assert found.local["lock"].startswith("# Made by")
    assert found.local["key"] is None
    release = found.params["release"]
    assert release["to"] == "out"
    assert release["card"] == {}
    assert (release["key"], release["epoch"]) == (None, None)
    assert str(folder) not in str(found.params), "where the recipe lies changes nothing"


def test_a_comment_in_the_recipe_changes_the_release_for_it_holds_the_recipe(folder: Path) -> None:
    assert step(folder).params != step(folder, "# more\n").params


def test_the_card_is_part_of_the_key_and_so_is_the_text_of_its_template(folder: Path) -> None:
    more = "card: {template: card.md.j2, license: apache-2.0, language: [en, 'no'], base_model: [a/b]}\n"
    before = step(folder, more)
    assert before.params["release"]["card"] == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": ["a/b"],
        "tags": [],
    }
    (folder / "card.md.j2").write_text("# other\n")
    after = step(folder, more)
    one, two = before.inputs["card-template"], after.inputs["card-template"]
    assert isinstance(one, LocalInput)
    assert isinstance(two, LocalInput)
    assert one.digest != two.digest
    assert before.params == after.params


def test_another_key_is_another_release_and_the_key_itself_is_not_in_the_plan(folder: Path) -> None:
    before = step(folder, "sign: {key: sign.key}\n")
    (folder / "sign.key").write_text("another secret")
    after = step(folder, "sign: {key: sign.key}\n")
    (folder / "sign.key").unlink()
    absent = step(folder, "sign: {key: sign.key}\n")
    keys = [found.params["release"]["key"] for found in (before, after, absent)]
    assert len(set(keys)) == 3
    assert "another secret" not in str(after.params) + str(after.local)
    assert after.local["key"] == str(folder / "sign.key")


def test_source_date_epoch_is_part_of_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, epoch in (("1704067200", 1704067200), ("", None), ("soon", None), ("-5", None), ("٣", None)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
        assert step(folder).params["release"]["epoch"] == epoch


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("card: {licence: mit}", "unknown key 'licence'; did you mean 'license'?"),
        ("card: {template: absent.j2}", "card.template: there is no file 'absent.j2' beside the recipe"),
        ("card: {language: [english language]}", "card.language[0]"),
        ("card: {language: en}", "card.language"),
        ("card: {base_model: [nobody]}", "card.base_model[0]"),
        ("card: {license: 'a\"b'}", "card.license"),
        ("sign: {}", "sign: "),
        ("sign: {key: ''}", "sign.key"),
        ('sign: {key: "-----BEGIN EC PRIVATE KEY-----"}', "this is the key itself"),
        ('sign: {key: "a\\u0007b"}', "control character"),
        ("sign: sign.key", "sign: "),
    ],
)
def test_mistakes_are_said(folder: Path, more: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        step(folder, more + "\n")
    assert message in str(caught.value)


@pytest.mark.parametrize("to", ["models", "models/", "./deep/../models", "link", "file:models"])
def test_a_folder_that_holds_what_is_read_is_no_place_for_a_release(to: str, folder: Path) -> None:
    (folder / "link").symlink_to("models")
    (folder / "models/x").touch()
    text = RECIPE.replace("to: out", f"to: {to}")
    assert text != RECIPE
    with pytest.raises(UsageError, match="read from"):
        step(folder, text=text)


NAMED = {
    "card.template": "card: {template: out/mine}\n",
    "sign.key": "sign: {key: out/mine}\n",
    "smoke.text": "smoke: {text: out/mine}\n",
    "engine.source.path": "engine: {source: {path: out/mine}}\n",
    "engine.source.git": f"engine: {{source: {{git: ./out/mine, commit: {'c' * 40}}}}}\n",
    "models.tiny7.imatrix.text": "",
}


@pytest.mark.parametrize("key", NAMED)
def test_a_release_does_not_replace_what_goes_into_it(key: str, folder: Path) -> None:
    """Whatever of a recipe names a file: all of `named_files`."""
    (folder / "out").mkdir()
    (folder / "out/mine").write_text("# x\n")
    text = RECIPE
    if key.startswith("models."):
        text = RECIPE.replace("- name: tiny7\n", "- name: tiny7\n    imatrix: {text: out/mine}\n")
        assert text != RECIPE
    found = blueprint(folder, NAMED[key], text)
    assert key in named_files(found.recipe)
    with pytest.raises(UsageError, match="read from"):
        list(publish.steps(found))


def test_every_file_that_a_recipe_names_is_tried_here() -> None:
    assert {re.sub(r"^models\.\w+", "models.*", key) for key in NAMED} == {
        place for place, kind in PLACES.items() if kind in ("file", "git")
    }
