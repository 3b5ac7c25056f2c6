"""What happened in past runs: one file of events a run, in the store below runs/<recipe>/."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkvflow.base.events import Event, StepLog, StepProgress
from rwkvflow.base.files import clear_errors
from rwkvflow.store.store import Store

KEPT = 50  # runs of a recipe
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
SHORTEST_SECRET = 8


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {value for name, value in environment.items() if SECRET_NAMES.search(name)}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=lambda value: (-len(value), value))


def hide(text: str, hidden: list[str]) -> str:
    """The text without secrets."""
    for value in hidden:
        text = text.replace(value, "***")
    return text


class History:
    """A listener that keeps the events of one run. Logs are kept apart, by step key; progress is not kept.

    Each line is an event's JSON with "at", the seconds since 1970. Trouble with the file never disturbs the run.
    """

    def __init__(self, store: Store, run: str) -> None:
        folder = store.root / "runs" / run
        now = datetime.now(UTC)
        self.path = folder / f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06}Z-{os.getpid()}.jsonl"
        with clear_errors("keeping the run's history"):
            folder.mkdir(parents=True, exist_ok=True)
            for old in runs(store, run)[KEPT - 1 :]:
                old.unlink(missing_ok=True)
            self._file = self.path.open("x", encoding="utf-8", errors="backslashreplace")
        self._hidden = [json.dumps(value, ensure_ascii=False)[1:-1] for value in secrets(os.environ)]
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Keep the event, unless there may be thousands of its kind."""
        if isinstance(event, StepLog | StepProgress):
            return
        line = json.dumps({"at": round(time.time(), 3), **json.loads(event.to_json())}, ensure_ascii=False)
        with self._guard:
            try:
                self._file.write(hide(line, self._hidden) + "\n")
                self._file.flush()
            except (OSError, ValueError):  # disk full, or told after the end
                return

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            self._file.close()


def runs(store: Store, run: str) -> list[Path]:
    """The runs of a recipe that are kept, latest first."""
    return sorted((store.root / "runs" / run).glob("*.jsonl"), reverse=True)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run; lines that a killed run left half-written are skipped."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get("event"), str):
                yield entry
