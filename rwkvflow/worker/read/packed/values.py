"""CBOR (RFC 8949) and msgpack (its spec.md), as far as models are written in them: what a file says, without its data.

A string of bytes is told by its place and size and never read, so that a file of any size is described at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.rawfile import RawFile

WINDOW: Final = 1 << 16  # bytes that are read at once
MOST_VALUES: Final = 1 << 23  # of a file: a `.fr` has seven for each word of its vocabulary
MOST_TEXT: Final = 1 << 12  # bytes
DEEPEST: Final = 12

Kind = Literal["value", "bytes", "text", "array", "map"]
_NUMBERS: Final = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}


@dataclass(frozen=True, slots=True)
class Blob:
    """A string of bytes: where it begins in the file, and its size."""

    offset: int
    size: int


class Packed:
    """One file of values, read from its beginning on."""

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self._at = self._begin = 0
        self._window = b""
        self._left = MOST_VALUES

    def whole(self, head: Callable[[Packed], tuple[Kind, Any]]) -> Any:
        """The one value of the file, whose kinds `head` tells. Raises WorkerError for anything else."""
        found = self._value(head, 0)
        if self._at != self._file.size:
            raise self.wrong("bytes follow its end")
        return found

    def _value(self, head: Callable[[Packed], tuple[Kind, Any]], depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise self.wrong("too many values, or one in another too deeply")
        kind, found = head(self)
        if kind == "value":
            return found
        if kind == "bytes":
            blob = Blob(self._at, found)
            if found > self._file.size - self._at:
                raise self.wrong("the file is cut short")
            self._at += found
            return blob
        if kind == "text":
            if found > MOST_TEXT:
                raise self.wrong("a text is too long")
            return self.take(found).decode("utf-8", "replace")
        if found > self._left:
            raise self.wrong("too many values")
        if kind == "array":
            return [self._value(head, depth + 1) for _ in range(found)]
        made = {}
        for _ in range(found):
            key = self._value(head, depth + 1)
            if not isinstance(key, str):
                raise self.wrong("a key is no text")
            made[key] = self._value(head, depth + 1)
        return made

    def take(self, count: int) -> bytes:
        """The next bytes, of which there are few."""
        start = self._at - self._begin
        if not 0 <= start <= len(self._window) - count:
            self._begin = self._at
            rest = self._file.size - self._at
            self._window, start = self._file.bytes_at(self._at, max(count, min(WINDOW, rest))), 0
        self._at += count
        return self._window[start : start + count]

    def number(self, size: int) -> int:
        """An integer of so many bytes, the largest first, without a sign."""
        return int(struct.unpack(_NUMBERS[size], self.take(size))[0])

    def wrong(self, why: str) -> WorkerError:
        """The error that says where."""
        return WorkerError(f"{self._file.name}: broken at byte {self._at}: {why}")


def cbor(file: Packed) -> tuple[Kind, Any]:
    """What stands next: a value, or the kind of it and its size. Definite lengths only, and no tags."""
    first = file.take(1)[0]
    major, low = first >> 5, first & 31
    if major == 7:
        if low in (20, 21, 22):
            return "value", {20: False, 21: True, 22: None}[low]
        if low in (26, 27):
            return "value", struct.unpack(">f" if low == 26 else ">d", file.take(4 if low == 26 else 8))[0]
        raise file.wrong(f"no value that a model has ({first:#x})")
    if low > 27 or major == 6:
        raise file.wrong(f"no value that a model has ({first:#x})")
    number = low if low < 24 else file.number(1 << (low - 24))
    if major < 2:
        return "value", number if major == 0 else -1 - number
    kinds: dict[int, Kind] = {2: "bytes", 3: "text", 4: "array", 5: "map"}
    return kinds[major], number


_SIZED: Final[dict[int, tuple[Kind, int]]] = {
    **{0xC4 + at: ("bytes", 1 << at) for at in range(3)},
    **{0xD9 + at: ("text", 1 << at) for at in range(3)},
    **{0xDC + at: ("array", 2 << at) for at in range(2)},
    **{0xDE + at: ("map", 2 << at) for at in range(2)},
}


def msgpack(file: Packed) -> tuple[Kind, Any]:
    """The same of msgpack, without its extensions."""
    first = file.take(1)[0]
    if first < 0x80:
        return "value", first
    if first >= 0xE0:
        return "value", first - 0x100
    if first < 0xC0:
        if first < 0xA0:
            return ("map" if first < 0x90 else "array"), first & 15
        return "text", first & 31
    if first in _SIZED:
        kind, size = _SIZED[first]
        return kind, file.number(size)
    if first in (0xC0, 0xC2, 0xC3):
        return "value", {0xC0: None, 0xC2: False, 0xC3: True}[first]
    if first in (0xCA, 0xCB):
        return "value", struct.unpack(">f" if first == 0xCA else ">d", file.take(4 if first == 0xCA else 8))[0]
    if 0xCC <= first <= 0xD3:
        size = 1 << ((first - 0xCC) % 4)
        number = file.number(size)
        signed = first >= 0xD0 and number >> (8 * size - 1)
        return "value", number - (1 << (8 * size)) if signed else number
    raise file.wrong(f"no value that a model has ({first:#x})")
