"""The live display: how far a run is, how fast, how long it takes; and what watching costs."""

from __future__ import annotations

import io
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from rwkvflow.base import process
from rwkvflow.base.events import Event, Notice, RunStarted, StepFinished, StepLog, StepProgress, StepStarted
from rwkvflow.display.live import LiveDisplay
from rwkvflow.execute.actions import _BUILD_STEP
from rwkvflow.sandbox.isolation import memory
from rwkvflow.sandbox.isolation.memory import Family, MemoryLimit, members


class Clock:
    """What the display takes for the time."""

    now = 100.0

    @classmethod
    def monotonic(cls) -> float:
        """For `time.monotonic`."""
        return cls.now


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
    monkeypatch.setattr("rwkvflow.display.live.time", Clock)
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=200, color_system=None))
    display(RunStarted("r.yaml", "host", "asked for", 4))
    display(StepFinished("a", "fetch", "cached", 0.0))
    display(StepStarted("b", "fetch", "never run"))
    display(StepProgress("b", 30e6, 45e6, "B", "downloading"))
    monkeypatch.setattr(Clock, "now", 110.0)
    display(StepFinished("b", "fetch", "done", 10.0))
    assert display._whole is not None
    assert display._whole.amount() == "2 of 4 steps, 30.00 MB"
    assert display._whole.left(Clock.now) == "about 20.0 s left"  # ten seconds a step; what was cached tells nothing
    display._progress.refresh()
    display.close()
    assert "2 of 4 steps" in out.getvalue()


def test_work_without_a_run_has_a_bar_until_it_is_done() -> None:
    """A download, or a conversion without a recipe: nobody says that it begins."""
    text = shown(StepProgress("fetch/m.pth", 1e6, 4e6, "B", "downloading"), width=120)
    assert "fetch/m.pth" in text
    assert "1.00 MB / 4.00 MB" in text
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


class Minute:
    """A minute that passes as it is waited for, in place of a clock and of the event that ends a watch."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = self.walks = 0
        self.files: list[str] = []

    def wait(self, seconds: float) -> bool:
        """Nothing else ends the watch."""
        self.looks += 1
        self.now += seconds
        return self.now > 60

    def monotonic(self) -> float:
        """For `time.monotonic`."""
        return self.now


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="memory is watched by /proc")
@pytest.mark.parametrize(
    ("walk_s", "most"), [(0.0002, 600), (0.002, 150), (0.1, 30)], ids=["few", "hundreds", "a loaded machine"]
)
def test_the_watch_over_memory_looks_seldom(walk_s: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done while a command runs for a minute, on machines where a walk over all processes takes so long."""
    minute = Minute()

    def walk(session: int) -> set[int]:
        minute.walks += 1
        minute.now += walk_s
        return {session}

    def read(path: str) -> bytes:
        minute.files.append(path)
        return os_read(path)

    os_read = memory._read
    monkeypatch.setattr(memory, "members", walk)
    monkeypatch.setattr(memory, "_read", read)
    monkeypatch.setattr(memory, "time", minute)
    limit = MemoryLimit(1 << 40, threading.Event())
    monkeypatch.setattr(limit, "_done", minute)
    limit.remember()
    limit._watch()
    monkeypatch.undo()
    with limit:
        pass  # its pipe is closed
    assert limit.peak > 0
    assert 0 < minute.walks <= most
    assert minute.walks * walk_s <= max(60 / memory.SHARE, 60 / memory.LONGEST_S * walk_s)
    assert minute.looks <= 60 / memory.POLL_S + 1
    assert memory.POLL_S >= 0.1
    assert len(minute.files) <= minute.looks, "one file a look for each process of the command"


def test_nothing_is_drawn_but_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand steps of progress cost no drawing; time alone does, once a second."""
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=80))
    assert display._progress.live.auto_refresh
    assert display._progress.live.refresh_per_second <= 1
    for name in "abc":
        display(StepStarted(name, "smoke", "never run"))
    drawn = []
    lines = display._progress.get_renderables

    def draw() -> Iterable[RenderableType]:
        drawn.append(threading.get_ident())
        return lines()

    monkeypatch.setattr(display._progress, "get_renderables", draw)
    for number in range(1000):
        display(StepProgress("a", number, 1000, "B", "downloading"))
        display(StepLog("b", "a line of a program"))
    assert threading.get_ident() not in drawn
    display._progress.refresh()
    assert threading.get_ident() in drawn, "the counter counts"
    display.close()


def test_a_command_that_says_nothing_is_looked_at_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    said: list[object] = []

    class Counted(queue.Queue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if not said:
                waits.append(timeout or 0)
            piece = super().get(block, timeout)
            said.append(piece)  # that its output ended; then it is over at any moment
            return piece

    monkeypatch.setattr(process, "queue", SimpleNamespace(Queue=Counted, Empty=queue.Empty, Full=queue.Full))
    done = process.run([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert done.exit_code == 0
    assert waits
    assert min(waits) >= 0.1


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
