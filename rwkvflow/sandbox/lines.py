"""Lines out of a stream of bytes that comes in pieces of any size."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

LONGEST = 1 << 20  # characters; a "line" without end is handed on in pieces of this size
TAIL_LINES = 40


class LineSplitter:
    """Hands on whole lines; characters may be split between pieces; \\r (progress bars) ends a line too."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._feed(self._decoder.decode(piece))

    def close(self) -> None:
        """Hand on what is left without an end of line."""
        self._feed(self._decoder.decode(b"", final=True))
        if self._rest:
            self._on_line(self._rest.rstrip("\r"))
            self._rest = ""

    def _feed(self, text: str) -> None:
        # A "\r" at the very end may be half of "\r\n": it stays in the rest.
        *lines, self._rest = (self._rest + text).replace("\r\n", "\n").split("\n")
        for line in lines:
            self._emit(line)
        head, bar, tail = self._rest.rpartition("\r")
        if bar and tail:
            self._emit(head)
            self._rest = tail
        while len(self._rest) > LONGEST:
            self._on_line(self._rest[:LONGEST])
            self._rest = self._rest[LONGEST:]

    def _emit(self, line: str) -> None:
        for part in line.split("\r"):
            if part:
                self._on_line(part)
        if not line:
            self._on_line("")


class Tail:
    """Keeps the last lines while handing all of them on."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def __call__(self, line: str) -> None:
        """Take one line."""
        self._lines.append(line)
        self._on_line(line)

    def __str__(self) -> str:
        return "\n".join(self._lines)
