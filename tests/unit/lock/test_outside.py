"""What a recipe names outside of its folder goes nowhere without the person's word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.app import pipeline
from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.events import silent
from rwkvflow.cli import cli
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.lock.outside import check_inside

PLAIN = """\
name: demo
models: [{name: demo, source: m.pth, tokenizer: bytes}]
formats: [ggml-f16]
image: {python: "3.11"}
"""
KEYS = {
    "card.template": "card: {{template: {0}}}\n",
    "smoke.text": "smoke: {{text: {0}}}\n",
    "sign.key": "sign: {{key: {0}}}\n",
    "engine.source.path": "engine: {{source: {{path: {0}}}}}\n",
    "engine.source.git": "engine: {{source: {{git: {0}, commit: " + "c" * 40 + "}}}}\n",
}


def link(path: Path, target: Path | str) -> str:
    path.symlink_to(target)
    return path.name


#: Ways to name something outside of a folder; the canary and the folder are beside each other.
WAYS: dict[str, Callable[[Path, Path], str]] = {
    "up": lambda folder, canary: f"../{canary.name}",
    "down and up": lambda folder, canary: f"deep/../../{canary.name}",
    "absolute": lambda folder, canary: str(canary),
    "home": lambda folder, canary: f"~/{canary.name}",
    "a link": lambda folder, canary: link(folder / "link", canary),
    "a relative link": lambda folder, canary: link(folder / "link", f"../{canary.name}"),
    "a link to a link": lambda folder, canary: link(folder / "two", link(folder / "one", canary)),
    "through a linked folder": lambda folder, canary: f"{link(folder / 'up', '..')}/{canary.name}",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_out(way: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, canary = tmp_path / "recipe", tmp_path / "canary"
    (folder / "deep").mkdir(parents=True)
    if key.startswith("engine"):
        canary.mkdir()
        (canary / "CMakeLists.txt").touch()
    else:
        canary.write_text("canary")
    path = WAYS[way](folder, canary)
    if key == "engine.source.git" and way in ("a link", "a relative link", "a link to a link", "home"):
        path = f"./{path}"  # as git takes it
    text = PLAIN + KEYS[key].format(path)
    try:
        recipe = recipe_from_text(text, "recipe.yaml", folder)
    except RwkvflowError:
        return  # ~ of a text or template is a name like any other
    if key == "engine.source.git" and way == "home":
        return  # git knows no ~ after ./
    with pytest.raises(UsageError, match=key):
        check_inside(recipe, folder)
    (folder / "recipe.yaml").write_text(text)
    result = CliRunner().invoke(cli, ["plan", str(folder / "recipe.yaml"), "--store", str(tmp_path / "store")])
    assert isinstance(result.exception, UsageError)
    assert "--allow-outside" in str(result.exception)
    assert not (tmp_path / "store").exists(), "nothing was done before"


def test_what_lies_in_the_folder_is_fine(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/x").write_text("x")
    (folder / "link").symlink_to("deep/x")
    for path in ("deep/x", "link", "./deep/../deep/x", str(folder / "deep/x")):
        for key in ("card.template", "smoke.text", "sign.key"):
            check_inside(recipe_from_text(PLAIN + KEYS[key].format(path), "recipe.yaml", folder), folder)


def test_a_link_in_an_engines_folder_does_not_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / "engine/src").mkdir(parents=True)
    (folder / "engine/src/link.h").symlink_to("/etc/hostname")
    recipe = recipe_from_text(PLAIN + KEYS["engine.source.path"].format("engine"), "recipe.yaml", folder)
    with pytest.raises(UsageError, match=r"engine\.source\.path: src/link\.h"):
        check_inside(recipe, folder)


def test_the_person_may_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, or in a workflow; the check is then not made."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    (tmp_path / "text").write_text("x")
    (folder / "recipe.yaml").write_text(PLAIN + KEYS["smoke.text"].format("../text"))
    (folder / "flow.yaml").write_text("allow_outside: true\n")
    assert load_workflow(folder / "flow.yaml").allow_outside
    assert not load_workflow().allow_outside

    class Reached(Exception):
        pass

    def reached(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(pipeline, "open_store", reached)
    request = pipeline.Request(folder / "recipe.yaml")
    with pytest.raises(UsageError):
        pipeline.prepare(request, silent)
    for said in ({"allow_outside": True}, {"workflow": folder / "flow.yaml"}):
        with pytest.raises(Reached):
            pipeline.prepare(pipeline.Request(folder / "recipe.yaml", **said), silent)
