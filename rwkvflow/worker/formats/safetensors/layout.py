"""`safetensors`: the checkpoint's own names, types and values, for whatever reads plain RWKV weights.

    uint64 length of the header; the header, JSON: {name: {dtype, shape, data_offsets: [begin, end]}}, padded with
    spaces to a multiple of 8; the data, without gaps.

A model above the size that a recipe names becomes a folder, as transformers has them:

    STEM-00001-of-00003.safetensors …   the tensors in the checkpoint's order
    STEM.safetensors.index.json         {"metadata": {"total_size": bytes of tensors}, "weight_map": {name: file}}

The header is sorted by name. The data follow the checkpoint's order, wider types first so that each is aligned.
`safetensors-f16` and `-f32` are the same with all floating-point tensors in that type.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import FileFormat, Limits, Split
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES
from rwkvflow.worker.model.versions import ALL_VERSIONS, STATEFUL
from rwkvflow.worker.model.weight_types import BY_NUMBER, F16, F32, TYPE_OF_DTYPE
from rwkvflow.worker.read.shards import MAX_SHARDS, shard_name
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

DTYPES = {"f8_e4m3": "F8_E4M3", "f8_e5m2": "F8_E5M2"}  # the others are TensorInfo's in capitals
LARGEST_HEADER = 100_000_000  # what the safetensors package reads
T = TypeVar("T")


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the file: its name, dtype (of TensorInfo) and shape there, and where its values come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def safetensors_layout(entries: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None) -> Layout:
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


def safetensors_parts(
    entries: Iterable[TensorEntry], split: Split, metadata: Mapping[str, str] | None = None
) -> dict[str, Layout]:
    """The files of a folder, none larger than `split.size` unless it holds a single tensor: its shards, then the index.

    A single safetensors file without an index where that is small enough. Raises WorkerError.
    """
    listed = list(entries)
    suffix = ".safetensors"
    whole = safetensors_layout(listed, metadata)
    if whole.size <= split.size:
        return {f"{split.stem}{suffix}": whole}
    base = 8 + len(json.dumps({"__metadata__": dict(metadata or {})})) + 8
    groups = grouped([(entry, entry.nbytes + _described(entry)) for entry in listed], split.size - base)
    names = [shard_name(split.stem, number, len(groups), suffix) for number in range(1, len(groups) + 1)]
    out = {name: safetensors_layout(group, metadata) for name, group in zip(names, groups, strict=True)}
    places = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in listed)},
        "weight_map": dict(sorted(places.items())),
    }
    build = LayoutBuilder()
    build.literal((json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
    if large := sum(layout.size > split.size for layout in out.values()):
        build.remark(f"{large} of {len(out)} files are larger than {split.size} bytes: each of them is a single tensor")
    out[f"{split.stem}{suffix}.index.json"] = build.done()
    return out


def _described(entry: TensorEntry) -> int:
    """Bytes that an entry takes in the header at most."""
    return len(json.dumps(entry.name, ensure_ascii=False).encode()) + 22 * len(entry.shape) + 100


def grouped(items: Iterable[tuple[T, int]], limit: int) -> list[list[T]]:
    """Items (with their sizes) in order, as few groups as that allows of at most `limit`; larger ones stand alone.

    Raises WorkerError for more groups than anything reads.
    """
    groups: list[list[T]] = [[]]
    held = 0
    for item, size in items:
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += size
    if len(groups) > MAX_SHARDS:
        raise WorkerError(
            f"it would become {len(groups)} files, and at most {MAX_SHARDS} are written: give `split` a larger size"
        )
    return groups


@dataclass(frozen=True)
class Safetensors(FileFormat):
    """A single file. kind: F32 or F16 for all floating-point tensors; None: each in its own type."""

    kind: int | None = None

    @property
    def dtype(self) -> str | None:
        """The dtype of all floating-point tensors; None where each keeps its own."""
        return None if self.kind is None else BY_NUMBER[self.kind].name

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        return safetensors_layout(self._entry(info) for info in tensors.values())

    def parts(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], split: Split
    ) -> Mapping[str, Layout] | None:
        """The files that an artifact above the limit becomes, by name; None if it is not split."""
        found = safetensors_parts((self._entry(info) for info in tensors.values()), split)
        return found if len(found) > 1 else None

    def _entry(self, info: TensorInfo) -> TensorEntry:
        if self.kind is None or info.dtype not in (*TYPE_OF_DTYPE, "f64"):
            return TensorEntry(info.name, info.dtype, tuple(info.shape), info.name, Encoding(None))
        return TensorEntry(info.name, BY_NUMBER[self.kind].name, tuple(info.shape), info.name, Encoding(self.kind))


FORMATS = (
    Safetensors(
        name="safetensors",
        suffix=".safetensors",
        versions=ALL_VERSIONS,
        runs_here=frozenset(),
        consumer="safetensors",
        family="safetensors",
        is_read_here=True,
        may_be_equal=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        states=STATEFUL,
        splits=True,
        limits=Limits(logits=1e-4, perplexity=1e-4),
    ),
    Safetensors(
        name="safetensors-f16",
        suffix="-FP16.safetensors",
        versions=ALL_VERSIONS,
        runs_here=frozenset(),
        consumer="safetensors",
        family="safetensors",
        is_read_here=True,
        may_be_equal=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        states=STATEFUL,
        splits=True,
        limits=Limits(logits=0.02, perplexity=0.002),
        kind=F16,
    ),
    Safetensors(
        name="safetensors-f32",
        suffix="-FP32.safetensors",
        versions=ALL_VERSIONS,
        runs_here=frozenset(),
        consumer="safetensors",
        family="safetensors",
        is_read_here=True,
        may_be_equal=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        states=STATEFUL,
        splits=True,
        limits=Limits(logits=1e-4, perplexity=1e-4),
        kind=F32,
    ),
)
