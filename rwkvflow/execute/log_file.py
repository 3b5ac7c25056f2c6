"""The log of a step: what its command printed, up to a bound, with control sequences spelt out."""

from __future__ import annotations

import contextlib
import threading
from typing import IO

from rwkvflow.base.text import shown_line

BYTES = 64 << 20
LINES = 1_000_000


class LogFile:
    """Lines of a log, taken from several threads."""

    def __init__(self, file: IO[str], *, most_bytes: int = BYTES, most_lines: int = LINES) -> None:
        self._file = file
        self._bytes, self._lines = most_bytes, most_lines
        self._guard = threading.Lock()
        self._full = False

    def keep(self, line: str) -> bool:
        """Write a line; False where the log is full, of which it says so once."""
        text = shown_line(line) + "\n"
        with self._guard, contextlib.suppress(ValueError):  # a late line after the log was closed
            if self._full:
                return False
            self._lines -= 1
            self._bytes -= len(text.encode("utf-8", "replace"))
            if self._lines < 0 or self._bytes < 0:
                self._full = True
                text = "… the command printed more than a log may hold; the rest is left out\n"
            self._file.write(text)
            self._file.flush()
            return not self._full
        return False
