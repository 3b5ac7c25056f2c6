"""`make test`: the checks run beside the tests, whatever fails fails the whole, and all of it is told."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("ruff", "codespell", "shellcheck", "mypy", "mkdocs", "python", "pytest")
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make_test(folder: Path, fails: str = "") -> subprocess.CompletedProcess[str]:
    """`make test` with programs that say who they are, of which one may fail."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "bin").mkdir()
    for name in TOOLS:
        tool = folder / "bin" / name
        tool.write_text(f"#!/bin/sh\necho {name} ran\nexit {int(name == fails)}\n")
        tool.chmod(0o755)
    (folder / "pyproject.toml").touch()
    (folder / ".dev").touch()
    argv = ["make", "--no-print-directory", "test", "VENV=."]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def test_all_of_it_runs_and_the_checks_are_told_last(tmp_path: Path) -> None:
    done = make_test(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TOOLS:
        assert f"\n{name} ran" in done.stdout
    assert done.stdout.index("pytest ran") < done.stdout.index("ruff ran") < done.stdout.index("mkdocs ran")


@pytest.mark.parametrize("fails", TOOLS)
def test_what_fails_fails_the_whole_and_keeps_nothing_from_running(tmp_path: Path, fails: str) -> None:
    done = make_test(tmp_path, fails)
    assert done.returncode != 0
    for name in TOOLS:
        assert f"\n{name} ran" in done.stdout or (fails, name) == ("python", "mkdocs")
