"""What a recipe names outside of its folder goes nowhere without the person's word."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rwkvflow.app import pipeline
from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.events import silent
from rwkvflow.cli import cli
from rwkvflow.cli.options import RecipePath
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
    "models.demo.imatrix.text": "tokenizer: bytes, imatrix: {{text: {0}}}",
}


def naming(key: str, path: str) -> str:
    """A recipe that names the path under this key."""
    part = KEYS[key].format(path)
    if key.startswith("models."):
        return PLAIN.replace("tokenizer: bytes", part).replace("ggml-f16", "gguf-q4_k_m")
    return PLAIN + part


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
    text = naming(key, path)
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
        for key in ("card.template", "smoke.text", "sign.key", "models.demo.imatrix.text"):
            check_inside(recipe_from_text(naming(key, path), "recipe.yaml", folder), folder)


def test_a_link_in_an_engines_folder_does_not_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / "engine/src").mkdir(parents=True)
    (folder / "engine/src/link.h").symlink_to("/etc/hostname")
    recipe = recipe_from_text(naming("engine.source.path", "engine"), "recipe.yaml", folder)
    with pytest.raises(UsageError, match=r"engine\.source\.path: src/link\.h"):
        check_inside(recipe, folder)


def test_the_person_may_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, or in a workflow; the check is then not made."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    (tmp_path / "text").write_text("x")
    (folder / "recipe.yaml").write_text(naming("smoke.text", "../text"))
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
    with pytest.raises(UsageError):
        pipeline.relock(request, silent)
    for said in ({"allow_outside": True}, {"workflow": folder / "flow.yaml"}):
        with pytest.raises(Reached):
            pipeline.prepare(pipeline.Request(folder / "recipe.yaml", **said), silent)
        with pytest.raises(Reached):
            pipeline.relock(pipeline.Request(folder / "recipe.yaml", **said), silent)


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command that takes a recipe, up to its options; other arguments it needs are made up."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, *names, name)
        return
    arguments = [item for item in command.params if isinstance(item, click.Argument)]
    if any(isinstance(item.type, RecipePath) for item in arguments) or names == ("validate",):
        takes = {"step": "image/py3.11", "place": "oci://registry.example/x"}
        yield (*names, *(takes.get(str(item.name), "RECIPE") for item in arguments))


#: Commands that look at a recipe alone and open nothing that it names, or at its checkpoints alone.
LOOKERS = {"ci github", "ci gitlab", "matrix", "validate"}
#: Options without which a command does not begin.
WANTED = {"work": ("--remote", "file:///no/remote/store")}
OPENED: list[str] = []
LISTENING: list[bool] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if LISTENING and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(str(arguments[0]))


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """What this process opens from now on."""
    sys.addaudithook(_hear)
    LISTENING.append(True)
    yield OPENED
    LISTENING.clear()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_no_command_reads_it(
    words: tuple[str, ...], key: str, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that there is, and one that comes some day: it asks, or opens nothing of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a command asked the network first"))
    folder, canary = tmp_path / "recipe", tmp_path / "canary"
    folder.mkdir()
    if key.startswith("engine"):
        canary.mkdir()
        (canary / "CMakeLists.txt").touch()
    else:
        canary.write_text("canary")
    recipe = folder / "recipe.yaml"
    recipe.write_text(naming(key, "../canary"))
    opened.clear()
    name = " ".join(word for word in words if word != "RECIPE")
    line = [str(recipe) if word == "RECIPE" else word for word in words]
    result = CliRunner().invoke(cli, [*line, *WANTED.get(name, ())])
    if name not in LOOKERS:
        assert isinstance(result.exception, UsageError)
        assert "--allow-outside" in str(result.exception)
    assert str(recipe) in opened, "the hook hears what is opened, or this test shows nothing"
    assert not [path for path in opened if "canary" in path]
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()], "nothing was done before"
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_the_person_says_so_to_every_command_that_asks() -> None:
    for words in commands(cli):
        names = [word for word in words if word not in ("RECIPE", "image/py3.11", "oci://registry.example/x")]
        command: click.Command = cli
        for name in names:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        asks = {item.name for item in command.params} >= {"allow_outside", "workflow"}
        assert asks != (" ".join(names) in LOOKERS), names
