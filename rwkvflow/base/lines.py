"""Lines out of a stream of bytes that comes in pieces of any size, in bounded memory and time that is linear."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

LONGEST = 1 << 16  # characters; a "line" without end is handed on in pieces of this size
TAIL_LINES = 40
TAIL_CHARACTERS = 2000  # of a line


class LineSplitter:
    """Hands on whole lines; characters may be split between pieces; \\r (progress bars) ends a line too."""

    def __init__(self, on_line: Callable[[str], None], longest: int = LONGEST) -> None:
        self._on_line = on_line
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []  # of the line that has no end yet
        self._length = 0
        self._begun = False  # a part of the line was handed on
        self._held = False  # the last character was "\r", which may be half of "\r\n"

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._feed(self._decoder.decode(piece))

    def close(self) -> None:
        """Hand on what is left without an end of line."""
        self._feed(self._decoder.decode(b"", final=True))
        self._held = False
        if self._parts:
            self._end()

    def _feed(self, text: str) -> None:
        if not text:
            return
        if self._held:
            text = "\r" + text
        self._held = text.endswith("\r")
        if self._held:
            text = text[:-1]
        *lines, rest = text.replace("\r\n", "\n").split("\n")
        for line in lines:
            self._add(line)
            self._end(empty=not line and not self._begun)
            self._begun = False
        self._add(rest)

    def _add(self, text: str) -> None:
        """More of the line; a "\\r" in it ends what was before, and nothing is said of an empty part."""
        first, *others = text.split("\r")
        self._grow(first)
        for other in others:
            if self._parts:
                self._end()
            self._grow(other)

    def _grow(self, text: str) -> None:
        while self._length + len(text) >= self._longest:
            room = self._longest - self._length
            self._parts.append(text[:room])
            text = text[room:]
            self._end()
            if not text:
                return
        if text:
            self._parts.append(text)
            self._length += len(text)

    def _end(self, empty: bool = False) -> None:
        if self._parts or empty:
            line = "".join(self._parts)
            self._parts.clear()
            self._length = 0
            self._begun = True
            self._on_line(line)


class Tail:
    """Keeps the last lines, cut to a bound, while handing all of them on."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def __call__(self, line: str) -> None:
        """Take one line."""
        self._lines.append(line[:TAIL_CHARACTERS])
        self._on_line(line)

    def __str__(self) -> str:
        return "\n".join(self._lines)
