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


TABLES = tables()
#: What is said, in three tables, and the tests that show it, in three of the same form.
SAID, SHOWN = TABLES[:3], TABLES[3:]
CELLS = {
    f"{row[0]} / {number}": cell for table in SHOWN for row in table for number, cell in enumerate(row[1:], start=1)
}


def test_each_cell_that_is_said_is_shown_and_no_other() -> None:
    assert len(TABLES) == 6
    for said, shown in zip(SAID, SHOWN, strict=True):
        assert [row[0] for row in shown] == [row[0] for row in said]
        assert [len(row) for row in shown] == [len(row) for row in said]


def test_no_cell_is_empty() -> None:
    assert all(cell for table in TABLES for row in table for cell in row)
    assert [len(table[0]) for table in SAID] == [3, 4, 3]


def in_tests(cell: str) -> list[tuple[str, str]]:
    """File and function of every test that a cell names."""
    names = re.findall(r"`([^`]+)`", cell)
    assert re.sub(r"`[^`]+`|, ", "", cell) == "", "a cell holds names of tests, and nothing else"
    return [(path, function) for path, _, function in (name.partition("::") for name in names)]


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_the_tests_of_a_cell_exist(cell: str) -> None:
    assert in_tests(cell)
    for path, function in in_tests(cell):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert function.startswith("test_")
        assert re.search(rf"^def {re.escape(function)}\(", text, re.MULTILINE), f"{path}::{function}"
        assert Path(path).name.startswith("test_") or Path(path).name in (ROOT / SUMMONS).read_text(encoding="utf-8")


#: The test that runs those which pytest does not find by their file's name.
SUMMONS = "tests/redteam/test_without_walls.py"


@pytest.mark.parametrize("row", SHOWN[1], ids=lambda row: row[0])
def test_a_column_names_tests_of_its_own_place(row: list[str]) -> None:
    """Docker's are run in Docker, and those of a host without walls on one that has none."""
    _, docker, walls, without = row
    both = re.search(r"params=\[\"host\", .*docker", (ROOT / "tests/redteam/conftest.py").read_text(encoding="utf-8"))
    assert both, "the red team's commands run in either sandbox"
    assert any(path in ("tests/redteam/test_commands.py", DOCKER) for path, _ in in_tests(docker))
    assert not any(path == DOCKER for path, _ in in_tests(walls))
    assert all(path.endswith("without_walls.py") for path, _ in in_tests(without))


DOCKER = "tests/e2e/test_sandbox_docker.py"


def test_templates_of_strangers_are_rendered_at_one_place() -> None:
    """A recipe's and the chat templates of models, in a process with bounds."""
    found = {
        path.relative_to(ROOT / "rwkvflow").as_posix()
        for path in (ROOT / "rwkvflow").rglob("*.py")
        if re.search(r"environment\w*\(?\)?\.from_string\(|\bTemplate\(|apply_chat_template", path.read_text("utf-8"))
    }
    assert found == {
        "sandbox/image/dockerfile.py",  # our own Dockerfile.j2
        "base/jinja_process.py",
    }
