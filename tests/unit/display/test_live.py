"""The live display: how far a run is, how fast, how long it takes; and what watching costs."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from rwkvflow.base.events import Event, Notice, RunStarted, StepFinished, StepProgress, StepStarted
from rwkvflow.display.live import LiveDisplay
from rwkvflow.execute.actions import _BUILD_STEP
from rwkvflow.sandbox.isolation.memory import Family, MemoryLimit, members


class Clock:
    """What the display takes for the time."""

    now = 100.0


def shown(*events: Event, width: int = 80) -> str:
    """What a terminal of that width got, its control sequences included."""
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=width, color_system=None))
    for event in events:
        display(event)
    display._progress.refresh()
    display.close()
    return out.getvalue()


def test_a_run_tells_how_far_it_is_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvflow.display.live.time.monotonic", lambda: Clock.now)
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=200, color_system=None))
    display(RunStarted("r.yaml", "host", "asked for", 4))
    display(StepFinished("a", "fetch", "cached", 0.0))
    display(StepStarted("b", "fetch", "never run"))
    display(StepProgress("b", 30e6, 45e6, "B", "downloading"))
    monkeypatch.setattr(Clock, "now", 110.0)
    display(StepFinished("b", "fetch", "done", 10.0))
    assert display._whole is not None
    assert display._whole.amount() == "2 of 4 steps, 30.0 MB"
    assert display._whole.left(Clock.now) == "about 20.0 s left"  # ten seconds a step; what was cached tells nothing
    display._progress.refresh()
    display.close()
    assert "2 of 4 steps" in out.getvalue()


def test_work_without_a_run_has_a_bar_until_it_is_done() -> None:
    """A download, or a conversion without a recipe: nobody says that it begins."""
    text = shown(StepProgress("fetch/m.pth", 1e6, 4e6, "B", "downloading"), width=120)
    assert "fetch/m.pth" in text
    assert "1.0 / 4.0 MB" in text
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=120))
    for done in (1e6, 4e6):
        display(StepProgress("convert", done, 4e6, "B"))
    assert not display._progress.tasks
    display.close()


def test_words_wrap_at_words_on_a_terminal_and_nowhere_else() -> None:
    message = "checkpoint " * 20
    text = shown(Notice(message)).replace("\x1b[2K", "")
    lines = [line for line in text.splitlines() if "checkpoint" in line]
    assert len(lines) > 2
    assert all(set(line.split()) == {"checkpoint"} for line in lines), lines
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=False, width=80))
    display(Notice(message))
    display.close()
    assert len(out.getvalue().strip().splitlines()) == 1


def test_the_steps_of_an_image_build_are_told() -> None:
    found = _BUILD_STEP.match("Step 3/12 : RUN pip install --no-index")
    assert found is not None
    assert found.groups() == ("3", "12", "RUN pip install --no-index")
    assert _BUILD_STEP.match(" ---> Running in 0123") is None


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="memory is watched by /proc")
def test_waiting_costs_less_than_a_hundredth_of_a_core() -> None:
    """The watch over memory, the bars: what this process does while a command runs for two seconds."""
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=80))
    display(RunStarted("r.yaml", "host", "asked for", 4))
    for name in "abc":
        display(StepStarted(name, "smoke", "never run"))
    with MemoryLimit(1 << 40, threading.Event()) as limit:
        code = "import os, sys, time; os.setsid(); os.write(int(sys.argv[1]), os.getpid().to_bytes(8, 'little'))"
        code += "; time.sleep(9)"
        command = [sys.executable, "-c", code, str(limit._write)]
        with subprocess.Popen(command, pass_fds=[limit._write]) as process:
            while limit.session is None:
                time.sleep(0.05)
            began, cpu = time.monotonic(), time.process_time()
            time.sleep(2)
            used = (time.process_time() - cpu) / (time.monotonic() - began)
            process.kill()
    display.close()
    assert limit.peak > 0
    assert used < 0.02, f"{used:.2%} of a core"  # 0.9 % on a busy machine; it was 7 %


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="memory is watched by /proc")
def test_a_process_that_comes_later_is_counted() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(50_000_000); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True) as process:
        family, began = Family(process.pid), time.monotonic()
        while family.held() < 50_000_000:
            assert time.monotonic() - began < 30
            time.sleep(0.05)
        assert len(members(process.pid)) == 2
        process.communicate(b"\n")
