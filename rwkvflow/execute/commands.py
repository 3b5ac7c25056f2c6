"""Runs the command that a batch of steps shares, and sorts out what became of each.

Nothing that a command leaves or prints is believed. Its outputs are taken over and hashed here; what the worker says
comes signed over a channel of its own, and a digest that it says is compared, never used.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import RwkvflowError, SmokeFailed, StepFailed
from rwkvflow.base.files import no_space, remove
from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.execute.base import Job, Made, Product, Work
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import Command, Result, Sandbox
from rwkvflow.sandbox.isolation.disk import DEEPEST, TOO_DEEP
from rwkvflow.sandbox.takeover import Identity, identities, take
from rwkvflow.store.store import Store
from rwkvflow.worker.protocol import KEY_BYTES, Signer, parse

CHANNEL = ".channel"  # in out/, gone before a command can look
KILLED = 128 + 9  # exit code of what was ended by signal 9
NOTES = 64  # of a step
NOTE_CHARACTERS = 4000


class Commands:
    """The action of all steps that run in the sandbox."""

    def __init__(self, sandbox: Sandbox, store: Store) -> None:
        self.sandbox = sandbox
        self.store = store
        self._swept = False
        self._guard = threading.Lock()

    def __call__(self, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        """Run the command of a batch; returns what each step made, or why it failed."""
        first = jobs[0].step
        with self._guard:
            if not self._swept:  # here and not at the start: a run that has nothing to do asks no daemon
                self._swept = True
                self.sandbox.sweep()
        is_worker = "task" in first.params
        out = work.folder / "out"
        out.mkdir()
        inputs: dict[str, Path] = {}
        for job in jobs:
            for name, path in job.inputs.items():
                if inputs.setdefault(name, path) != path:
                    raise StepFailed(f"steps of one batch disagree on the input {name}")
        listener = Listener(jobs, work, {one for path in inputs.values() for one in identities(path)})
        request = None
        if is_worker:
            request = _request(jobs, listener.places)
            handle = os.open(out / CHANNEL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(listener.key)
        command = Command(
            first.command,
            inputs,
            request,
            on_output=listener.on_output if is_worker else None,
            trusted=bool(first.local.get("trusted")),
        )
        before = {name: _stamps(path) for name, path in inputs.items()}
        result = self.sandbox.run(
            jobs[0].environment or "", command, work.folder, work.limits, listener.on_line, work.cancel
        )
        if changed := self._changed(jobs, inputs, before):
            gone = not inputs[changed].exists() and not inputs[changed].is_relative_to(self.store.root)
            error = StepFailed(
                f"its input {changed} went away while the command ran: {inputs[changed]}"
                if gone
                else f"the command changed its input {changed}",
                remedy="what it made is not taken; run again, which makes or fetches the input again",
            )
            return {job.step.id: error for job in jobs}
        return {job.step.id: self._judge(job, work, listener, result, is_worker) for job in jobs}

    def _judge(self, job: Job, work: Work, listener: Listener, result: Result, is_worker: bool) -> Made | RwkvflowError:
        name = job.step.id
        well = result.exit_code == 0 and not (
            result.out_of_memory or result.timed_out or result.cancelled or result.over_disk is not None
        )
        told = listener.ended.get(name)
        if isinstance(told, RwkvflowError):
            return told
        if told is not None and (well or len(listener.jobs) > 1):  # of a batch, what was taken over before stays
            return told
        if not well and listener.full and not (result.timed_out or result.cancelled or result.over_disk is not None):
            return no_space(name)
        if not well:
            return failure(job.step.stage, work.limits, result)
        if is_worker:
            return StepFailed("the worker ended well, and did not say that it made this")
        return listener.take(job, {})

    def _changed(self, jobs: Sequence[Job], inputs: Mapping[str, Path], before: Mapping[str, list[Any]]) -> str | None:
        """The first input that holds something else than before; it is dropped where it stands in the store."""
        digests = {name: job.digests[name] for job in jobs for name in job.inputs if name in job.digests}
        for name, path in inputs.items():
            if _stamps(path) == before[name] or name not in digests:
                continue
            try:  # the time of a change of the inode tells of new names, too: only the digest is proof
                same = digests[name] == (tree_digest(path) if path.is_dir() else file_digest(path))
            except OSError:
                same = False
            if not same:
                if path.is_relative_to(self.store.root):
                    remove(path)
                return name
        return None


def _stamps(path: Path) -> list[Any]:
    """What the kernel notes of every file of an input; the time of change cannot be set back."""
    files = [path] if not path.is_dir() else [item for item in sorted(path.rglob("*")) if item.is_file()]
    found: list[Any] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append((str(file), None))
            continue
        found.append((str(file), (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)))
    return found


def _request(jobs: Sequence[Job], places: Mapping[str, Mapping[str, str]]) -> bytes:
    params = jobs[0].step.params
    request = {
        "task": params["task"],
        "params": params["params"],
        "channel": f"out/{CHANNEL}",
        "jobs": [
            {
                "id": job.step.id,
                "params": job.step.params["job"],
                "outputs": {name: f"out/{place}" for name, place in places[job.step.id].items()},
            }
            for job in jobs
        ],
    }
    return json.dumps(request, sort_keys=True, ensure_ascii=False).encode()


class Listener:
    """Takes the worker's signed lines; everything else is log, of which a line of progress is shown as such."""

    def __init__(self, jobs: Sequence[Job], work: Work, inputs: set[Identity]) -> None:
        self.jobs = {job.step.id: job for job in jobs}
        self.ended: dict[str, Made | RwkvflowError] = {}
        self.full = False  # the worker says that the disk is full
        self.key = secrets.token_bytes(KEY_BYTES)
        is_worker = "task" in jobs[0].step.params
        self.places = {
            job.step.id: {name: f"{index}.{name}" if is_worker else name for name in job.step.outputs}
            for index, job in enumerate(jobs)
        }
        self._first, self._others = jobs[0], jobs[1:]
        self._work, self._inputs = work, inputs
        self._signer = Signer(self.key)
        self._told: dict[str, dict[str, str | None]] = {}
        self._notes: dict[str, dict[str, str]] = {}
        self._taken = work.folder / "taken"

    def on_output(self, line: str) -> None:
        """A line of the worker's channel."""
        message = self._signer.verify(line)
        if message is None:
            self.on_line(line)
            return
        try:
            self._take(message)
        except (KeyError, TypeError, ValueError):
            self.on_line(line)

    def on_line(self, line: str) -> None:
        """A line of the log, from anybody."""
        message = parse(line)
        if message is not None and self._progress(message):
            return
        self._first.log(line)
        for job in self._others:
            job.keep(line)

    def take(self, job: Job, told: Mapping[str, str | None]) -> Made | RwkvflowError:
        """Take a job's outputs over; what was told of their digests is compared."""
        self._taken.mkdir(exist_ok=True)
        products = {}
        for name, place in self.places[job.step.id].items():
            try:
                taken = take(
                    self._work.folder,
                    place,
                    self._taken / place,
                    inputs=self._inputs,
                    largest=self._work.limits.disk,
                    check=self._go_on,
                )
            except FileNotFoundError:
                return StepFailed(f"the command ended well but left no out/{place}")
            except StepFailed as error:
                return error
            if told.get(name) not in (None, taken.digest):
                return StepFailed(f"out/{place} has {taken.digest}, and the worker wrote {told[name]}")
            products[name] = Product(taken.path, taken.digest)
        return Made(products, self._notes.get(job.step.id, {}))

    def _go_on(self) -> None:
        if self._work.cancel.is_set():
            raise StepFailed("stopped")

    def _take(self, message: dict[str, Any]) -> None:
        if "output" in message:
            told = message["output"]
            job = self.jobs[told["job"]]
            known = self._told.setdefault(job.step.id, {})
            known[told["name"]] = f"sha256:{told['sha256']}" if told["sha256"] else None
            if set(known) == set(job.step.outputs) and job.step.id not in self.ended:
                self.ended[job.step.id] = self.take(job, known)
        elif "note" in message:
            told = message["note"]
            notes = self._notes.setdefault(self.jobs[told["job"]].step.id, {})
            if len(notes) < NOTES:
                notes[str(told["key"])[:NOTE_CHARACTERS]] = str(told["value"])[:NOTE_CHARACTERS]
        elif "failed" in message:
            told = message["failed"]
            job = self.jobs[told["job"]]
            kind = SmokeFailed if job.step.stage == "smoke" else StepFailed
            text = str(told["message"])
            self.ended.setdefault(job.step.id, no_space(text) if told.get("full") is True else kind(text))
        elif message.get("full") is True:
            self.full = True
        else:
            self._progress(message)

    def _progress(self, message: Mapping[str, Any]) -> bool:
        """Show how far something says it has come; False where this is no such message."""
        told = message.get("progress")
        if not isinstance(told, dict) or len(message) != 1:
            return False
        done: Any = told.get("done")
        total: Any = told.get("total")
        if not _number(done) or not (total is None or _number(total)):
            return False
        job = self.jobs.get(str(told.get("job")), self._first)
        job.progress(done, total, str(told.get("unit", ""))[:8], str(told.get("label", ""))[:200])
        return True


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and 0 <= value <= 1e18
    except OverflowError:
        return False


def failure(stage: str, limits: StepLimits, result: Result) -> StepFailed:
    """Why a command failed, and what to do about it."""
    if result.cancelled:
        return StepFailed("stopped")
    if result.over_disk == TOO_DEEP:
        return StepFailed(
            f"made folders more than {DEEPEST} deep, and nobody can tell how much of the disk they hold",
            remedy=f"use fewer, or leave stages.{stage}.disk out of workflow.yaml",
        )
    if result.over_disk is not None and limits.disk:
        return StepFailed(
            f"occupied {result.over_disk / 2**30:.2f} GiB of the disk, and its limit is {limits.disk / 2**30:.2f} GiB",
            remedy=f"raise stages.{stage}.disk in workflow.yaml",
        )
    if result.out_of_memory:
        limit = f" of {limits.memory / 2**30:.2f} GiB" if limits.memory else ""
        return StepFailed(f"ran out of its memory limit{limit}", remedy=f"raise stages.{stage}.memory in workflow.yaml")
    if result.timed_out:
        return StepFailed(
            f"took longer than its time limit of {limits.time_s:g} s",
            remedy=f"raise stages.{stage}.time in workflow.yaml",
        )
    tail = "\n".join("    " + line for line in result.tail.splitlines()[-12:])
    return StepFailed(
        f"its command ended with exit code {result.exit_code}\n{tail}".rstrip(),
        remedy="if nothing in it kills itself, run again: what is finished is not done twice; and look at the memory "
        "that this machine has left"
        if result.exit_code == KILLED
        else None,
    )
