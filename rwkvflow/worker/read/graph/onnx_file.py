"""The index of an ONNX model: what it says of itself, and its weights, without reading these.

Field numbers are those of onnx.proto (onnx/onnx); a message is walked in place, so that weights inside the file, which
may be gigabytes, are stepped over. A weight outside it is held against the file that it says it is in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.graph import GraphIndex, GraphTensor, beside
from rwkvflow.worker.read.rawfile import RawFile

SUFFIX: Final = ".onnx"
WINDOW: Final = 1 << 16  # bytes that are read at a time
MOST_FIELDS: Final = 1 << 22  # of a file that is looked at; a graph of a hundred layers has some ten thousand
MOST_TEXT: Final = 1 << 16  # bytes of a name or a value that is shown
# TensorProto.DataType: name here, bits of a value
TYPES: Final = {
    1: ("f32", 32),
    2: ("u8", 8),
    3: ("i8", 8),
    4: ("u16", 16),
    5: ("i16", 16),
    6: ("i32", 32),
    7: ("i64", 64),
    9: ("bool", 8),
    10: ("f16", 16),
    11: ("f64", 64),
    12: ("u32", 32),
    13: ("u64", 64),
    16: ("bf16", 16),
    21: ("u4", 4),
    22: ("i4", 4),
}
_VARINT, _FIXED64, _BLOCK, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class _Weight:
    """An initializer of the graph; `location` is the file that it is in from `offset` on, if that is another."""

    tensor: GraphTensor
    location: str = ""
    offset: int = 0


class _ProtoMessage:
    """The fields of a message that lies in a file from `start` to `stop`."""

    def __init__(self, file: RawFile, start: int, stop: int, left: list[int]) -> None:
        self.file, self.start, self.stop, self._left = file, start, stop, left
        self._window, self._from = b"", 0

    def fields(self) -> Iterator[tuple[int, int, _ProtoMessage | None]]:
        """(number, value, None) of a number; (number, length, message) of bytes, a text or a message."""
        at = self.start
        while at < self.stop:
            self._left[0] -= 1
            if self._left[0] < 0:
                raise WorkerError(f"{self.file.name}: more than {MOST_FIELDS} fields; this is no model")
            key, at = self._varint(at)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, at = self._varint(at)
                yield number, value, None
                continue
            if kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            elif kind == _BLOCK:
                size, at = self._varint(at)
            else:
                raise self._broken(at)
            if number == 0 or size > self.stop - at:
                raise self._broken(at)
            yield number, size, _ProtoMessage(self.file, at, at + size, self._left) if kind == _BLOCK else None
            at += size

    def text(self) -> str:
        """The bytes as a text, its beginning where it is long."""
        return self.file.bytes_at(self.start, min(self.stop - self.start, MOST_TEXT)).decode("utf-8", "replace")

    def numbers(self) -> Iterator[int]:
        """Packed integers."""
        at = self.start
        while at < self.stop:
            value, at = self._varint(at)
            yield value

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.stop:
                break
            if not self._from <= at < self._from + len(self._window):
                self._window, self._from = self.file.bytes_at(at, min(WINDOW, self.stop - at)), at
            byte = self._window[at - self._from]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise self._broken(at)

    def _broken(self, at: int) -> WorkerError:
        return WorkerError(f"{self.file.name}: broken at byte {at}. Download or copy it again.")


def looks_like(file: RawFile) -> bool:
    """Whether it is named as an ONNX model is, or begins as one: with its version, a small number, and has a graph.

    Protobuf has no magic number.
    """
    if file.name.lower().endswith(SUFFIX):
        return True
    head = file.bytes_at(0, min(file.size, 2))
    if len(head) < 2 or head[0] != 8 or not 0 < head[1] < 64:
        return False
    try:
        return any(number == 7 and message for number, _, message in _ProtoMessage(file, 0, file.size, [64]).fields())
    except WorkerError:
        return False


def read_onnx_index(path: Path | str) -> GraphIndex:
    """Raises WorkerError for what is no ONNX model, and where a file with its weights is missing or too short."""
    with RawFile(path) as file:
        metadata: dict[str, Any] = {}
        names = {1: "IR version", 5: "model version"}, {2: "producer", 3: "producer version", 6: "description"}
        opsets, graph = [], None
        for number, value, message in _ProtoMessage(file, 0, file.size, [MOST_FIELDS]).fields():
            if message is None:
                if number in names[0]:
                    metadata[names[0][number]] = value
            elif number == 7:
                graph = message
            elif number in names[1]:
                metadata[names[1][number]] = message.text()
            elif number == 8:
                opsets.append(_opset(message))
            elif number == 14:
                key, text = _entry(message)
                metadata[key] = text
        if graph is None:
            raise WorkerError(f"{file.name}: no ONNX model: it has no graph")
        if opsets:
            metadata["opset"] = ", ".join(opsets)
        weights = _graph(graph, metadata)
    return GraphIndex(metadata, [weight.tensor for weight in weights], _outside(Path(path), weights))


def _graph(graph: _ProtoMessage, metadata: dict[str, Any]) -> list[_Weight]:
    operators: Counter[str] = Counter()
    values: dict[int, list[str]] = {11: [], 12: []}
    weights = []
    for number, _, message in graph.fields():
        if message is None:
            continue
        if number == 1:
            operators[_text(message, 4)] += 1
        elif number == 5:
            weights.append(_weight(message))
        elif number in values:
            values[number].append(_text(message, 1))
    metadata["operators"] = ", ".join(f"{kind} {count}" for kind, count in sorted(operators.items()))
    metadata["inputs"], metadata["outputs"] = (" ".join(found) for found in values.values())
    return weights


def _weight(message: _ProtoMessage) -> _Weight:
    shape: list[int] = []
    name, kind, location, entries = "", 0, 0, {}
    for number, value, inner in message.fields():
        if number == 1:
            shape += [value] if inner is None else inner.numbers()
        elif number == 2:
            kind = value
        elif number == 8 and inner:
            name = inner.text()
        elif number == 13 and inner:
            key, text = _entry(inner)
            entries[key] = text
        elif number == 14:
            location = value
    file = message.file.name
    if any(size >= 1 << 63 for size in shape):
        raise WorkerError(f"{file}: {name} has a negative size")
    known, bits = TYPES.get(kind, (f"type {kind}", 0))
    size = math.prod(shape) * bits // 8
    if location != _EXTERNAL:
        return _Weight(GraphTensor(name, known, tuple(shape), size))
    place = entries.get("location", "")
    if not place or place in (".", "..") or "/" in place or "\\" in place or "\0" in place:
        raise WorkerError(f"{file}: {name} is in {place!r}, which is not a file beside it")
    offset, length = (_whole(file, name, entries.get(key, "0")) for key in ("offset", "length"))
    return _Weight(GraphTensor(name, known, tuple(shape), size or length), place, offset)


def _whole(file: str, name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WorkerError(f"{file}: {name} begins or ends at {text[:40]!r}, which is no number of bytes")
    return int(text)


def _outside(model: Path, weights: list[_Weight]) -> list[Path]:
    """The files beside a model that hold its weights. Raises WorkerError where one is missing or too short."""
    ends: dict[str, int] = {}
    for weight in weights:
        if weight.location:
            ends[weight.location] = max(ends.get(weight.location, 0), weight.offset + weight.tensor.nbytes)
    files = []
    for name, end in ends.items():
        files.append(beside(model, name))
        with RawFile(files[-1]) as file:
            if file.size < end:
                raise WorkerError(
                    f"{name}: the file is cut short: {model.name} has weights up to byte {end}, and it has "
                    f"{file.size}. Download or copy it again."
                )
    return files


def _opset(message: _ProtoMessage) -> str:
    domain, version = "", 0
    for number, value, inner in message.fields():
        if number == 1 and inner:
            domain = inner.text()
        elif number == 2:
            version = value
    return f"{domain} {version}".strip()


def _entry(message: _ProtoMessage) -> tuple[str, str]:
    """StringStringEntryProto."""
    return _text(message, 1), _text(message, 2)


def _text(message: _ProtoMessage, wanted: int) -> str:
    return next((inner.text() for number, _, inner in message.fields() if number == wanted and inner), "")
