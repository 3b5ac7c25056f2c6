"""The commands' help: every option explains itself, and so does every exit code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rwkvflow.base import errors
from rwkvflow.cli import EXIT_CODES, SECTIONS, cli
from scripts import docs_tables

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = {" ".join(words): command for words, command in docs_tables.commands()}
OPTIONS = [
    (f"{name} {option.opts[-1]}", option)
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.hidden and option.name not in ("help", "version")
]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_every_option_has_a_help_that_is_no_fragment(name: str, option: click.Option) -> None:
    text = option.help or ""
    assert re.match(r"[A-Z]|[a-z]+ (is|\()|auto \(|librwkv", text), (
        f"{name} has no help, or one that begins oddly: {text!r}"
    )
    assert not re.match(r"(Of|That|And|With which|Where to|As)\b", text), f"{name}: {text!r} is a fragment"
    assert not text.endswith("."), f"{name}: click and the docs add what follows"
    assert "several times" not in text, f"{name}: the docs say that of every option that may be repeated"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    first = (COMMANDS[name].help or "").partition("\n")[0]
    assert re.match(r"[A-Z][a-z]+[ ,].*[.:]", first), f"{name}: {first!r}"
    assert first.split()[0] not in {"A", "An", "The"}, f"{name}: begin with what the command does"


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds = [errors.RwkvflowError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = errors.exit_codes()
    assert {kind.exit_code for kind in kinds} | {0} == codes.keys()
    for kind in kinds:
        assert kind.meaning == codes[kind.exit_code], f"{kind.__name__} has a meaning of its own for a shared code"
    for code, meaning in codes.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", EXIT_CODES, re.MULTILINE)


def test_no_script_of_ours_takes_our_output_apart() -> None:
    """What a script needs of a command is printed by an option of it."""
    files = [ROOT / "Makefile", ROOT / ".ci/run", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    for folder in ("rwkvflow", "scripts", "images", "recipes", "tests/golden"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".j2", ".yaml", ".sh")]
    pattern = re.compile(r"rwkvflow[^\n|]*\|\s*(sed|awk|grep|cut|head|tail|tr)\b")
    found = [
        f"{path.relative_to(ROOT)}: {match.group(0)}" for path in files for match in pattern.finditer(path.read_text())
    ]
    assert found == []
    assert pattern.search("$(rwkvflow engine build my.yaml | sed 's/.*: //')")


def test_the_help_lists_every_command_once_with_its_whole_summary() -> None:
    names = [command.name or "" for _, commands in SECTIONS for command in commands]
    assert sorted(names) == sorted(cli.commands)
    text = CliRunner().invoke(cli, ["--help"]).output
    for name, command in cli.commands.items():
        summary = " ".join((command.help or "").split("\n\n")[0].replace("\b", "").split()).rstrip(".")
        assert f"{name} {summary}" in " ".join(text.split()), name
