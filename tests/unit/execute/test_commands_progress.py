"""How far a batch has come is shown at the step that it is about."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.execute.base import Job, Work
from rwkvflow.execute.commands import Listener, failure
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.sandbox.base import Result
from rwkvflow.worker import protocol


@pytest.fixture
def shown() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def listener(tmp_path: Path, shown: list[tuple[str, Any]]) -> Listener:
    """Of a batch of two steps."""

    def job(name: str) -> Job:
        step = Step(f"smoke/{name}", "smoke", "sandbox", {"task": "ask"}, {}, ("answers",))
        quiet = lambda *told: None  # noqa: E731
        told = lambda *told: shown.append((name, told))  # noqa: E731
        return Job(step, "k", "e", {}, {}, quiet, quiet, told)

    return Listener([job("one"), job("two")], Work(tmp_path, StepLimits(), threading.Event()), set())


def line(capsys: pytest.CaptureFixture[str], job: str | None, done: int) -> str:
    """What a worker prints."""
    protocol.about(job)
    try:
        protocol.progress(done, 9, "B", "tensor")
    finally:
        protocol.about(None)
    return capsys.readouterr().out.strip()


def test_progress_is_that_of_the_step_it_names(
    listener: Listener, shown: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for job, done in (("smoke/two", 1), ("smoke/one", 2), (None, 3), ("smoke/of another batch", 4)):
        listener.on_line(line(capsys, job, done))
    assert [(name, told[0]) for name, told in shown] == [("two", 1), ("one", 2), ("one", 3), ("one", 4)]
    assert shown[0][1] == (1, 9, "B", "tensor")


def test_what_was_killed_from_outside_says_what_to_do() -> None:
    assert failure("smoke", StepLimits(), Result(1, 0.0)).remedy is None
    assert "run again" in str(failure("smoke", StepLimits(), Result(137, 0.0, tail="killed by signal 9")).remedy)
