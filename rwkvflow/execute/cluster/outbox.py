"""What a worker tells while it works: lines, progress, begin and end. And whether its work is still wanted."""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from rwkvflow.base.events import Event, StepLog, StepProgress, StepStarted
from rwkvflow.execute.cluster.words import Message

FLUSH_S = 0.2  # how often events are told
LINES = 400  # of logs, each time; the rest is in the worker's own store
CANCEL_S = 0.5  # how often a worker looks whether its task is still wanted
GONE = frozenset({"closing", "closed", "failed"})  # Dask's words for a worker that works no more


class TaskWorker:
    """Dask's worker that runs this task, if it is one."""

    def __init__(self) -> None:
        self.dask: Any = None
        self.key = ""
        with contextlib.suppress(Exception):
            from distributed.worker import get_worker, thread_state

            self.dask, self.key = get_worker(), str(getattr(thread_state, "key", ""))
        self.name = f"{self.dask.name} on {platform.node()}" if self.dask is not None else platform.node()

    def tell(self, topic: str, event: Mapping[str, Any]) -> None:
        """Tell whoever listens."""
        if self.dask is not None:
            with contextlib.suppress(Exception):
                self.dask.log_event(topic, dict(event))

    @contextlib.contextmanager
    def watched(self) -> Iterator[threading.Event]:
        """An event that is set when the task is no longer wanted here: cancelled, given to another, or all are gone."""
        cancel, done = threading.Event(), threading.Event()

        def watch() -> None:
            while not done.wait(CANCEL_S):
                task = self.dask.state.tasks.get(self.key)
                if task is None or task.state in ("cancelled", "resumed") or self.dask.status.name in GONE:
                    cancel.set()
                    return

        if self.dask is not None:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield cancel
        finally:
            done.set()


class Outbox:
    """Tells the events of a task's steps, a few times a second."""

    def __init__(self, worker: TaskWorker, message: Message) -> None:
        self._worker, self._message = worker, message
        self._first = next(iter(message.steps))
        self._guard = threading.Lock()
        self._lines: dict[str, list[str]] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._left_out = 0
        self.last = "it did not say why"  # that the remote store said
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Outbox:
        self._send({"kind": "started", "name": self._worker.name})  # Dask puts an address under "worker"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._flush()
        self._send({"kind": "ended"})

    def note(self, text: str) -> None:
        """Something that the remote store says."""
        self.last = text
        self._line(self._first, text)

    def event(self, event: Event) -> None:
        """An event of the executor here; those of steps that are made by the way are told as lines."""
        if isinstance(event, StepStarted) and event.step not in self._message.steps:
            self._line(self._first, f"{event.step} is made here: {event.why}")
        elif isinstance(event, StepLog):
            self._line(event.step, event.line)
        elif isinstance(event, StepProgress):
            step = event.step if event.step in self._message.steps else self._first
            told = {"done": event.done, "total": event.total, "unit": event.unit, "label": event.label}
            with self._guard:
                self._progress[step] = {"kind": "progress", "step": step, **told}

    def _line(self, step: str, line: str) -> None:
        with self._guard:
            lines = self._lines.setdefault(step if step in self._message.steps else self._first, [])
            if len(lines) < LINES:
                lines.append(line[:4000])
            else:
                self._left_out += 1

    def _run(self) -> None:
        while not self._done.wait(FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        with self._guard:
            lines, self._lines = self._lines, {}
            progress, self._progress = self._progress, {}
            left_out, self._left_out = self._left_out, 0
        if left_out:
            lines.setdefault(self._first, []).append(f"… {left_out} lines more are in the log on {self._worker.name}")
        for step, listed in lines.items():
            self._send({"kind": "log", "step": step, "lines": listed})
        for told in progress.values():
            self._send(told)

    def _send(self, event: Mapping[str, Any]) -> None:
        self._worker.tell(self._message.topic, {"token": self._message.token, **event})
