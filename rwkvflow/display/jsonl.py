"""JSON lines, for programs: one event a line on standard output."""

from __future__ import annotations

import sys
import threading
from typing import TextIO

from rwkvflow.base.events import Event


class JsonLines:
    """Writes each event as it happens. The fields are those of `rwkvflow.base.events`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write the event as a line of JSON."""
        with self._guard:
            self.stream.write(event.to_json() + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Nothing to take down."""
