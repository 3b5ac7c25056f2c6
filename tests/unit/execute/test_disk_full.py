"""A full disk inside a step is told by kind, signed like all that the worker says, and ends a run with exit code 8."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rwkvflow.app.pipeline import Finished
from rwkvflow.base.errors import SmokeFailed, StepFailed, StoreError
from rwkvflow.execute.base import Job, Made, Outcome, Work
from rwkvflow.execute.commands import Commands
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.sandbox.base import Command, Result
from rwkvflow.store.store import Store
from rwkvflow.worker import __main__ as worker
from rwkvflow.worker.errors import WorkerError, is_disk_full
from rwkvflow.worker.protocol import Signer

MESSAGES: list[dict[str, Any]] = [{"full": True}, {"failed": {"job": "s/1", "message": "of 3 GB", "full": True}}]
ENDS: dict[str, dict[str, Any]] = {
    "out of time": {"timed_out": True},
    "stopped": {"cancelled": True},
    "over its own limit": {"over_disk": 9},
}


class Sandbox:
    """Says what a worker with the channel's key would say."""

    name, platform = "host", "linux-x86_64"

    def __init__(self, say: Callable[[Signer, Command], None], **result: Any) -> None:
        self.say, self.result = say, {"exit_code": 1, "seconds": 0.1, **result}

    def sweep(self) -> int:
        return 0

    def run(self, tag: str, command: Command, workdir: Path, *rest: Any) -> Result:
        self.say(Signer((workdir / "out" / ".channel").read_bytes()), command)
        return Result(**self.result)


def outcome(tmp_path: Path, say: Callable[[Signer, Command], None], stage: str = "convert", **result: Any) -> Any:
    quiet = lambda *told: None  # noqa: E731
    limits = StepLimits(disk=1, time_s=9)
    step = Step("s/1", stage, "sandbox", {"task": "convert", "params": {}, "job": {}}, {}, ("x",), limits=limits)
    job = Job(step, "k", "e", {}, {}, quiet, quiet, quiet)
    store = Store(tmp_path / "store")
    with store.scratch() as folder:
        work = Work(folder, limits, threading.Event())
        return Commands(Sandbox(say, **result), store)([job], work)["s/1"]  # type: ignore[arg-type]


def tell(**message: Any) -> Callable[[Signer, Command], None]:
    def say(signer: Signer, command: Command) -> None:
        assert command.on_output is not None
        command.on_output(signer.sign(message))

    return say


@pytest.mark.parametrize("stage", ["convert", "smoke", "engine"])
@pytest.mark.parametrize("message", MESSAGES, ids=["task", "job"])
def test_what_the_worker_says_of_the_disk_is_the_stores_matter(
    tmp_path: Path, message: dict[str, Any], stage: str
) -> None:
    error = outcome(tmp_path, tell(**message), stage)
    assert isinstance(error, StoreError)
    assert "no space left" in error.message
    ended = Finished({"s/1": Outcome("failed", error=error)}, 1.0).error()
    assert ended is not None
    assert ended.exit_code == 8


@pytest.mark.parametrize("full", [False, 0, 1, "yes", None])
def test_anything_else_is_the_steps_own_fault(tmp_path: Path, full: object) -> None:
    message = {"failed": {"job": "s/1", "message": "no space left on device", "full": full}}
    assert type(outcome(tmp_path, tell(**message))) is StepFailed
    assert type(outcome(tmp_path / "s", tell(**message), "smoke")) is SmokeFailed


def test_an_engine_cannot_say_it(tmp_path: Path) -> None:
    def say(signer: Signer, command: Command) -> None:
        assert command.on_output is not None
        command.on_output('::rwkvflow {"full": true}')
        command.on_output("::rwkvflow 0 " + "0" * 64 + ' {"full": true}')

    assert type(outcome(tmp_path, say)) is StepFailed


@pytest.mark.parametrize("end", ENDS)
def test_a_bound_of_the_steps_own_comes_first(tmp_path: Path, end: str) -> None:
    assert type(outcome(tmp_path, tell(full=True), **ENDS[end])) is StepFailed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_the_worker_tells_it_by_the_errors_number(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the error itself, and of one that it was made from; never of a text."""
    first = OSError(number, os.strerror(number))

    def direct(request: object) -> None:
        raise first

    def wrapped(request: object) -> None:
        try:
            raise first
        except OSError as error:
            raise WorkerError("out/x cannot be written") from error

    def text(request: object) -> None:
        raise WorkerError("no space left on device")

    request = tmp_path / "request.json"
    request.write_text('{"task": "convert"}', encoding="utf-8")
    full = number in (errno.ENOSPC, errno.EDQUOT)
    for task, expected in ((direct, full), (wrapped, full), (text, False)):
        module = ModuleType("rwkvflow.worker.tasks.convert")
        module.run = task  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        assert worker.main([str(request)]) == 1
        assert ('{"full": true}' in capsys.readouterr().out) == expected
    assert is_disk_full(first) == full


def test_a_disk_that_is_full_for_the_host_itself_is_no_flaw(tmp_path: Path) -> None:
    """Also where no part of the store was at work: while a command was laid out, for instance."""

    def action(jobs: object, work: object) -> dict[str, Made]:
        raise OSError(errno.ENOSPC, "No space left on device")

    step = Step("s/1", "convert", "a", {}, {}, ("x",))
    executor = LocalExecutor(Store(tmp_path / "store"), {"a": action}, {}, lambda event: None, run="r", cores=1)
    ended = executor.run(Plan([step], ["s/1"]))["s/1"]
    assert isinstance(ended.error, StoreError)
