"""SECURITY.md: each row of its tables names tests that show it, and these exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tables() -> list[list[list[str]]]:
    """The tables, as rows of cells; heads left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
        inside = True
        found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table[2:] for table in found]


COMMANDS, STRANGERS, SHOWN = tables()


def test_every_row_is_shown_and_nothing_else() -> None:
    assert [row[0] for row in SHOWN] == [row[0] for row in (*COMMANDS, *STRANGERS)]


def test_no_cell_is_empty() -> None:
    assert all(len(row) == 4 and all(row) for row in COMMANDS)
    assert all(len(row) == 3 and all(row) for row in STRANGERS)


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: row[0])
def test_the_tests_of_a_row_exist(row: list[str]) -> None:
    names = re.findall(r"`([^`]+)`", row[1])
    assert names
    for name in names:
        path, _, function = name.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {re.escape(function)}\(", text, re.MULTILINE), name


def test_templates_of_strangers_are_rendered_at_one_place() -> None:
    """A recipe's, in a process with bounds; the chat templates of checkpoints nowhere."""
    found = {
        path.relative_to(ROOT / "rwkvflow").as_posix()
        for path in (ROOT / "rwkvflow").rglob("*.py")
        if re.search(r"environment\w*\(?\)?\.from_string\(|\bTemplate\(|apply_chat_template", path.read_text("utf-8"))
    }
    assert found == {
        "sandbox/image/dockerfile.py",  # our own Dockerfile.j2
        "release/model_card/template_process.py",
    }
