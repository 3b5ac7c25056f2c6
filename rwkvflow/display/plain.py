"""Plain lines, for CI logs and pipes: one line when a step starts and one when it ends."""

from __future__ import annotations

import sys
import threading
from typing import TextIO

from rwkvflow.base.events import Event, Notice, RunFinished, RunStarted, StepFinished, StepLog, StepStarted
from rwkvflow.base.text import shown
from rwkvflow.display.words import duration, figures, headline, summary


class PlainDisplay:
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self, stream: TextIO | None = None, *, verbose: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.verbose = verbose
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print the event as a line, if it is worth one."""
        line = self._line(event)
        if line is not None:
            with self._guard:
                self.stream.write(shown(line) + "\n")
                self.stream.flush()

    def close(self) -> None:
        """Nothing to take down."""

    def _line(self, event: Event) -> str | None:
        match event:
            case RunStarted():
                return headline(event)
            case StepStarted():
                return f"  start   {event.step}  ({event.why})"
            case StepFinished(status="done"):
                return f"  done    {event.step}  {duration(event.seconds)}{figures(event.notes)}"
            case StepFinished(status="cached"):
                return f"  cached  {event.step}" if self.verbose else None
            case StepFinished():
                return f"  {event.status:<7} {event.step}" + (f": {event.message}" if event.message else "")
            case StepLog():
                return f"          {event.step} | {event.line}" if self.verbose else None
            case Notice():
                return f"{'warning: ' if event.level == 'warning' else ''}{event.message}"
            case RunFinished():
                return summary(event)
        return None
