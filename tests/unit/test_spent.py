"""Long files of tests begin first, and a run says where its time went."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import spent

TESTS = Path(__file__).resolve().parents[1]
BURN = """
import time

def test_it():
    end = time.process_time() + {seconds}
    while time.process_time() < end: pass
"""


def test_every_file_that_is_said_to_be_long_is_there() -> None:
    assert [name for name in spent.LONG if not (TESTS / name).is_file()] == []


def test_the_long_ones_begin_first_and_the_table_has_them_all(tmp_path: Path) -> None:
    order = ["e2e/test_all_formats.py", "engine/test_targets.py", "engine/test_other.py", "unit/test_a.py"]
    for number, name in enumerate(reversed(order)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(BURN.format(seconds=0.1 * number))
    command = [sys.executable, "-m", "pytest", "-p", "spent", "-p", "no:cacheprovider", "-v", "--rootdir", ".", "."]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert [line.partition("::")[0] for line in lines if "PASSED" in line] == order
    (start,) = (number for number, line in enumerate(lines) if "by file" in line)
    rows = [line.split() for line in lines[start:] if line.endswith(".py")]
    cpu = {name: float(used) for _, used, name in rows}
    assert set(cpu) == set(order)
    assert cpu["e2e/test_all_formats.py"] >= 0.3


def test_it_is_said_which_worker_had_nothing_to_do_at_the_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text("def test_it() -> None: pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "spent", "-p", "xdist", "-p", "no:cacheprovider", "-n", "2"]
    done = subprocess.run(
        [*command, "--dist", "loadfile", "--rootdir", ".", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^(gw\d) ended \d+ s before the last one, with (test_.\.py)$", done.stdout, re.MULTILINE)
