"""`safetensors`: the checkpoint's own names, types and values, for whatever reads plain RWKV weights.

    uint64 length of the header; the header, JSON: {name: {dtype, shape, data_offsets: [begin, end]}}, padded with
    spaces to a multiple of 8; the data, without gaps.

The header is sorted by name. The data follow the checkpoint's order, wider types first so that each is aligned.
`safetensors-f16` and `-f32` are the same with all floating-point tensors in that type.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkvflow.worker.formats.base import (
    ALL_VERSIONS,
    F16,
    F32,
    STATEFUL,
    TYPE_OF_DTYPE,
    Encoding,
    FileFormat,
    Layout,
    LayoutBuilder,
    Limits,
)
from rwkvflow.worker.protocol import WorkerError
from rwkvflow.worker.tensorinfo import ITEM_BYTES

if TYPE_CHECKING:
    from rwkvflow.worker.architecture import Architecture
    from rwkvflow.worker.checkpoint import TensorInfo

DTYPES = {"f8_e4m3": "F8_E4M3", "f8_e5m2": "F8_E5M2"}  # the others are TensorInfo's in capitals
LARGEST_HEADER = 100_000_000  # what the safetensors package reads
DTYPE_OF_KIND = {F32: "f32", F16: "f16"}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name, dtype (of TensorInfo) and shape there, and where its values come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def safetensors_layout(entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> Layout:
    """A safetensors file of these tensors, their data in this order. Raises WorkerError where two share a name."""
    order = sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype])  # stable
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in order:
        if entry.name in header:
            raise WorkerError(f"two tensors would be called {entry.name!a} in the file")
        header[entry.name] = {
            "dtype": DTYPES.get(entry.dtype, entry.dtype.upper()),
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise WorkerError(f"a safetensors header of {len(text)} bytes is more than readers take")
    build = LayoutBuilder()
    build.literal(struct.pack("<Q", len(text)) + text)
    for entry in order:
        build.slot(entry.source, math.prod(entry.shape), entry.encoding, size=entry.nbytes)
    return build.done()


@dataclass(frozen=True)
class Safetensors(FileFormat):
    """A single file. kind: F32 or F16 for all floating-point tensors; None: each in its own type."""

    kind: int | None = None

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """See FileFormat."""
        return safetensors_layout(self._entry(info) for info in tensors.values())

    def _entry(self, info: TensorInfo) -> Entry:
        if self.kind is None or info.dtype not in (*TYPE_OF_DTYPE, "f64"):
            return Entry(info.name, info.dtype, tuple(info.shape), info.name, Encoding(None))
        return Entry(info.name, DTYPE_OF_KIND[self.kind], tuple(info.shape), info.name, Encoding(self.kind))


FORMATS = (
    Safetensors(
        name="safetensors",
        suffix=".safetensors",
        versions=ALL_VERSIONS,
        consumer="safetensors",
        states=STATEFUL,
        limits=Limits(logits=1e-4, perplexity=1e-4),
    ),
    Safetensors(
        name="safetensors-f16",
        suffix="-FP16.safetensors",
        versions=ALL_VERSIONS,
        consumer="safetensors",
        states=STATEFUL,
        limits=Limits(logits=0.02, perplexity=0.002),
        kind=F16,
    ),
    Safetensors(
        name="safetensors-f32",
        suffix="-FP32.safetensors",
        versions=ALL_VERSIONS,
        consumer="safetensors",
        states=STATEFUL,
        limits=Limits(logits=1e-4, perplexity=1e-4),
        kind=F32,
    ),
)
