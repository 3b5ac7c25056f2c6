"""The index of a GGUF file (llama.cpp): metadata and tensors, validated; no data is read.

Layout, little-endian (ggml's docs/gguf.md): "GGUF", u32 version 2 or 3, u64 number of tensors, u64 number of metadata
pairs; a pair is a text (u64 length, UTF-8), u32 type, value; an array is u32 type, u64 length, values. A tensor is a
text, u32 number of dims, u64 dims (reversed), u32 type, u64 offset into the data, which starts at the next multiple of
general.alignment (32).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.weight_types import WEIGHT_TYPES
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.shards import Joined, open_model, shard_name

MAX_INDEX: Final = 64 << 20
MAX_COUNT: Final = 1_000_000
MAX_TEXT: Final = 16 << 20
SHOWN: Final = 8  # values of a long array that are kept
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
#: ggml's number of a type: name, values per block, bytes per block (ggml.c, type_traits).
TYPES: Final[dict[int, tuple[str, int, int]]] = {
    **{kind.gguf: (kind.name, kind.values, kind.nbytes) for kind in WEIGHT_TYPES},
    # Those that only llama.cpp writes.
    9: ("q8_1", 32, 36),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    19: ("iq1_s", 256, 50),
    22: ("iq2_s", 256, 82),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: type (a name in TYPES), shape in PyTorch's order, and where its `nbytes` bytes are in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufIndex:
    """Metadata (an array longer than SHOWN is {"length": n, "first": [...]}) and tensors in the file's order."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_index(path: Path | str) -> GgufIndex:
    """Reads the index of a GGUF file, or of all shards where `path` is the first of them.

    Raises WorkerError for anything that is not a whole, consistent one.
    """
    with open_model(path) as file:
        return read_open(file)


def read_open(file: RawFile) -> GgufIndex:
    """The index of a file that open_model has opened. Raises what read_gguf_index raises."""
    if isinstance(file, Joined):
        return _joined(file)
    index = _GgufReader(file).index()
    if (count := _split(file, index, "count")) > 1:
        number = _split(file, index, "no") + 1
        what = f"part {number} of {count}" if number <= count else f"part {number} of only {count}"
        raise WorkerError(
            f"{file.name}: {what}, which has to be called {shard_name('NAME', number, count)}, beside the others"
        )
    return index


def _joined(file: Joined) -> GgufIndex:
    """Metadata of the first shard, tensors of all of them."""
    indexes = [_GgufReader(part).index() for part in file.parts]
    tensors: dict[str, GgufTensor] = {}
    total = _split(file.parts[0], indexes[0], "tensors.count")
    for number, (part, start, index) in enumerate(zip(file.parts, file.starts, indexes, strict=True)):
        said = (_split(part, index, "no"), _split(part, index, "count"), _split(part, index, "tensors.count"))
        if said != (number, len(file.parts), total):
            raise WorkerError(
                f"{part.name}: it says that it is part {said[0] + 1} of {said[1]} with {said[2]} tensors in all; by "
                f"its name and the first part it is {number + 1} of {len(file.parts)} with {total}: "
                "no parts of one model"
            )
        for name, tensor in index.tensors.items():
            if name in tensors:
                raise WorkerError(f"{part.name}: tensor {name!a} is in a part before it, too: no parts of one model")
            tensors[name] = replace(tensor, offset=tensor.offset + start)
    if len(tensors) != total:
        raise WorkerError(f"{file.name}: its parts hold {len(tensors)} tensors and should hold {total}")
    return GgufIndex(indexes[0].version, indexes[0].metadata, tensors)


def _split(file: RawFile, index: GgufIndex, key: str) -> int:
    value = index.metadata.get(f"split.{key}", 0)
    if type(value) is not int or value < 0:
        raise WorkerError(f"{file.name}: broken GGUF file: split.{key} is {str(value)[:40]!a}")
    return value


class _GgufReader:
    """Walks the index through a window of the file."""

    def __init__(self, file: RawFile) -> None:
        self.file = file
        self.at = 0
        self.window = b""
        self.start = 0

    def index(self) -> GgufIndex:
        if self.take(4) != b"GGUF":
            raise self.bad("it does not start with GGUF")
        (version,) = self.numbers("I")
        if version not in (2, 3):
            raise self.bad(f"its version is {version}; 2 and 3 are known")
        n_tensors, n_pairs = self.numbers("QQ")
        if max(n_tensors, n_pairs) > MAX_COUNT:
            raise self.bad(f"it claims {n_tensors} tensors and {n_pairs} metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self.text(65535)
            if key in metadata:
                raise self.bad(f"metadata {key!a} stands twice")
            metadata[key] = self.value(self.numbers("I")[0])
        claims = [self.tensor() for _ in range(n_tensors)]
        align = metadata.get("general.alignment", 32)
        if type(align) is not int or align < 1 or align > 1 << 20 or align & (align - 1):
            raise self.bad(f"its alignment is {align!a}")
        base = self.at + -self.at % align
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset, nbytes in claims:
            if name in tensors:
                raise self.bad(f"two tensors are called {name!a}")
            if offset % align or base + offset + nbytes > self.file.size:
                raise self.bad(f"tensor {name!a} lies outside the file or is not aligned")
            tensors[name] = GgufTensor(name, kind, shape, base + offset, nbytes)
        end = 0
        for tensor in sorted(tensors.values(), key=lambda item: item.offset):
            if tensor.offset < end:
                raise self.bad(f"tensor {tensor.name!a} overlaps another")
            end = tensor.offset + tensor.nbytes
        return GgufIndex(version, metadata, tensors)

    def bad(self, what: str) -> WorkerError:
        return WorkerError(f"{self.file.name}: broken GGUF file: {what}. Copy or convert it again.")

    def take(self, count: int) -> bytes:
        if self.at + count > min(self.file.size, MAX_INDEX):
            raise self.bad("its index is cut short or absurdly long")
        low = self.at - self.start
        if low + count > len(self.window):
            self.start = self.at
            self.window = self.file.bytes_at(self.at, min(max(count, 1 << 16), self.file.size - self.at))
            low = 0
        self.at += count
        return self.window[low : low + count]

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def text(self, limit: int) -> str:
        (length,) = self.numbers("Q")
        if length > limit:
            raise self.bad(f"a text of {length} bytes")
        return self.take(length).decode("utf-8", "backslashreplace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            found = self.numbers(_SCALARS[kind])[0]
            return found if not isinstance(found, float) or math.isfinite(found) else str(found)
        if kind == _TEXT:
            return self.text(MAX_TEXT)
        if kind != _ARRAY:
            raise self.bad(f"metadata of the unknown type {kind}")
        inner, length = self.numbers("IQ")
        if inner in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[inner])
            first = [self.value(inner) for _ in range(min(length, SHOWN))]
            self.skip(size * (length - len(first)))
        elif inner == _TEXT:
            first = []
            if length > MAX_COUNT:
                raise self.bad(f"an array of {length} texts")
            for index in range(length):
                item = self.text(MAX_TEXT)
                if index < SHOWN:
                    first.append(item)
        else:
            raise self.bad(f"an array of the type {inner}")
        return first if length <= SHOWN else {"length": length, "first": first}

    def skip(self, count: int) -> None:
        if self.at + count > min(self.file.size, MAX_INDEX):
            raise self.bad("its index is cut short or absurdly long")
        self.at += count
        if self.at - self.start > len(self.window):
            self.start, self.window = self.at, b""

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        name = self.text(1000)
        (dimensions,) = self.numbers("I")
        if not 1 <= dimensions <= 8:
            raise self.bad(f"tensor {name!a} has {dimensions} dims")
        shape = tuple(reversed(self.numbers(f"{dimensions}Q")))
        number, offset = self.numbers("IQ")
        if number not in TYPES:
            raise self.bad(f"tensor {name!a} has the unknown type {number}")
        if min(shape) < 1:
            raise self.bad(f"tensor {name!a} has the dims {list(shape)}")
        kind, values, size = TYPES[number]
        if shape[-1] % values:
            raise self.bad(f"rows of tensor {name!a} are not whole blocks of {values}")
        return name, kind, shape, offset, math.prod(shape) // values * size
