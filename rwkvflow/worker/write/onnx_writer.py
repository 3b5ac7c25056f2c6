"""Writes ONNX models: the few messages of onnx.proto that a graph needs, in protobuf's wire format, by hand.

Field numbers are those of onnx.proto (onnx/onnx, IR version 8). Fields are written in the order of their numbers, so
the same graph gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

IR_VERSION = 8
OPSET = 17  # the first with LayerNormalization
FLOAT, INT64, FLOAT16 = 1, 7, 10  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation
_FLOAT_ATTRIBUTE, _INT_ATTRIBUTE = 1, 2  # AttributeProto.AttributeType


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; negative numbers as 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(tag: int, value: int) -> bytes:
    """An integer field."""
    return varint(tag << 3) + varint(value)


def block(tag: int, data: bytes | str) -> bytes:
    """A field of bytes, a string or a message."""
    raw = data.encode() if isinstance(data, str) else data
    return varint(tag << 3 | 2) + varint(len(raw)) + raw


def float32(tag: int, value: float) -> bytes:
    """A float field."""
    return varint(tag << 3 | 5) + struct.pack("<f", value)


@dataclass(frozen=True)
class Node:
    """One operator."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | float] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """NodeProto."""
        parts = [*(block(1, name) for name in self.inputs), *(block(2, name) for name in self.outputs)]
        parts += [block(3, self.outputs[0]), block(4, self.kind)]
        for name, value in sorted(self.attributes.items()):
            is_float = isinstance(value, float)
            given = float32(2, value) if is_float else number(3, int(value))
            kind = number(20, _FLOAT_ATTRIBUTE if is_float else _INT_ATTRIBUTE)
            parts.append(block(5, block(1, name) + given + kind))
        return b"".join(parts)


@dataclass(frozen=True)
class Tensor:
    """An initializer: `data` is in the model, or else `size` bytes from `offset` are in the file `location`."""

    name: str
    kind: int
    shape: tuple[int, ...]
    data: bytes | None = None
    location: str = ""
    offset: int = 0
    size: int = 0

    def encoded(self) -> bytes:
        """TensorProto."""
        out = b"".join(number(1, dim) for dim in self.shape) + number(2, self.kind) + block(8, self.name)
        if self.data is not None:
            return out + block(9, self.data)
        entries = {"location": self.location, "offset": str(self.offset), "length": str(self.size)}
        for key, value in entries.items():
            out += block(13, block(1, key) + block(2, value))
        return out + number(14, EXTERNAL)


@dataclass(frozen=True)
class Value:
    """An input or output of the graph."""

    name: str
    kind: int
    shape: tuple[int, ...]

    def encoded(self) -> bytes:
        """ValueInfoProto."""
        dims = b"".join(block(1, number(1, dim)) for dim in self.shape)
        return block(1, self.name) + block(2, block(1, number(1, self.kind) + block(2, dims)))


def model(
    nodes: Iterable[Node], tensors: Iterable[Tensor], inputs: Iterable[Value], outputs: Iterable[Value], producer: str
) -> bytes:
    """ModelProto: a whole .onnx file."""
    graph = [block(1, node.encoded()) for node in nodes]
    graph.append(block(2, "rwkv"))
    graph += [block(5, tensor.encoded()) for tensor in tensors]
    graph += [block(11, value.encoded()) for value in inputs]
    graph += [block(12, value.encoded()) for value in outputs]
    opset = block(1, "") + number(2, OPSET)
    return number(1, IR_VERSION) + block(2, producer) + block(7, b"".join(graph)) + block(8, opset)
