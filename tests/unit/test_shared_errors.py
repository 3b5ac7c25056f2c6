"""What a shared fixture failed of is printed once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

FILE = """
import pytest

@pytest.fixture(scope="module")
def shared():
    print("what the fixture printed")
    log = "a line of its log\\n" * 500
    raise AssertionError("making a lock\\n" + log + "  failed  smoke/a: why\\nerror: 1 step failed")

@pytest.fixture
def own():
    raise AssertionError("one of its own")

@pytest.mark.parametrize("number", range(20))
def test_shared(shared, number): pass

@pytest.mark.parametrize("number", range(3))
def test_own(own, number): pass

def test_fails(): assert 1 == 2
"""


def test_a_shared_error_is_printed_once_and_named_at_the_other_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FILE)
    # In CI pytest's summary is not shortened, and has an error's text once more.
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "shared_errors", "-p", "no:cacheprovider", "-ra", "--rootdir", ".", "."],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1 failed, 23 errors" in done.stdout
    lines = done.stdout.splitlines()
    assert sum(line.endswith("a line of its log") for line in lines) == 500
    assert lines.count("what the fixture printed") == 1
    named = [line for line in lines if line.startswith("as printed for test_it.py::test_shared[0]: AssertionError: ")]
    assert len(named) == 19
    assert all(line.endswith("failed  smoke/a: why") for line in named)
    assert sum(line == "E       AssertionError: one of its own" for line in lines) == 3
    assert any(line.startswith("E ") and line.endswith("assert 1 == 2") for line in lines)
