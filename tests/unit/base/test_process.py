"""The one way to subprocesses."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from rwkvflow.base.errors import EnvironmentMissing
from rwkvflow.base.process import run

PYTHON = sys.executable


def test_lines_come_as_they_are_printed_both_streams_merged() -> None:
    lines: list[str] = []
    done = run([PYTHON, "-c", "import sys; print('a', flush=True); print('b', file=sys.stderr)"], on_line=lines.append)
    assert (done.exit_code, sorted(lines)) == (0, ["a", "b"])


def test_bytes_that_are_no_utf8_do_no_harm() -> None:
    lines: list[str] = []
    run([PYTHON, "-c", r"import os; os.write(1, b'\xff\xfe ok\n')"], on_line=lines.append)
    assert lines == ["\ufffd\ufffd ok"]


def test_nothing_reaches_a_shell() -> None:
    lines: list[str] = []
    run([PYTHON, "-c", "import sys; print(sys.argv[1])", "$(echo hacked); `id`"], on_line=lines.append)
    assert lines == ["$(echo hacked); `id`"]


def test_a_time_limit_ends_the_whole_group_even_while_it_prints() -> None:
    code = "import subprocess,sys,time\nsubprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'])\n"
    code += "while True: print('x', flush=True); time.sleep(0.01)"
    start = time.monotonic()
    done = run([PYTHON, "-c", code], timeout=1.0)
    assert done.timed_out
    assert done.exit_code < 0
    assert time.monotonic() - start < 30


def test_a_child_that_outlives_its_parent_is_ended_too() -> None:
    code = "import subprocess,sys\nsubprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'])"
    start = time.monotonic()
    done = run([PYTHON, "-c", code], timeout=1.0)
    assert done.timed_out
    assert time.monotonic() - start < 20


def test_cancelling_ends_it() -> None:
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    done = run([PYTHON, "-c", "import time; time.sleep(60)"], cancel=cancel)
    assert done.cancelled
    assert done.exit_code < 0


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(EnvironmentMissing, match="no-such-program-xyz"):
        run(["no-such-program-xyz"])


def test_the_tail_is_kept() -> None:
    done = run([PYTHON, "-c", "for i in range(100): print(i)\nraise SystemExit(3)"])
    assert done.exit_code == 3
    assert done.tail.splitlines() == [str(i) for i in range(60, 100)]
