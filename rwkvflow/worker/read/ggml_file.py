"""The index of a rwkv.cpp file (`.bin`): header and tensors, validated; no data is read.

Layout, little-endian: six int32 (magic 0x67676d66, version 100 or 101, vocabulary, embedding, layers, data type), then
until the end of the file for each tensor: int32 number of dims, int32 length of the key, int32 data type, the dims
reversed, the key in UTF-8, the data. Nothing is aligned. Blocks hold 32 weights of a row, or 256 of the K types.

Files of rwkvflow 0.1 number Q4_K and Q5_K as ggml does, 12 and 13, which are Q3_K and Q4_K of rwkv.cpp. Blocks of these
have other sizes, so that only one reading of such a file ends where the file does: that one is taken.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.weight_types import NUMBERS_OF_0_1, WEIGHT_TYPES
from rwkvflow.worker.read.rawfile import RawFile

MAGIC: Final = 0x67676D66
#: Number of a data type in the file: its name, values per block, bytes per block.
TYPES: Final[dict[int, tuple[str, int, int]]] = {
    kind.number: (kind.name, kind.values, kind.nbytes) for kind in WEIGHT_TYPES if kind.in_bin
}
_TYPES_OF_0_1: Final = TYPES | {number: TYPES[kind] for number, kind in NUMBERS_OF_0_1.items()}
Types = Mapping[int, tuple[str, int, int]]
MAX_TENSORS: Final = 200_000
MAX_KEY: Final = 1000
MAX_DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class GgmlTensor:
    """One tensor: type (a name in TYPES), shape in PyTorch's order, and where its `nbytes` bytes are in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgmlIndex:
    """The header's numbers and the tensors in the file's order.

    `numbered_by` is "rwkv.cpp", or "rwkvflow 0.1" for a file whose K types have that version's numbers.
    """

    version: int
    n_vocab: int
    n_embd: int
    n_layer: int
    type: str
    tensors: dict[str, GgmlTensor]
    numbered_by: str = "rwkv.cpp"


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type. Raises ValueError when its rows are not whole blocks."""
    values, size = next((values, size) for name, values, size in TYPES.values() if name == kind)
    if shape and shape[-1] % values:
        raise ValueError(f"rows of {shape[-1]} are not whole blocks of {values}")
    return math.prod(shape) // values * size


def read_ggml_index(path: Path | str) -> GgmlIndex:
    """Reads the index of a rwkv.cpp file. Raises WorkerError for anything that is not a whole, consistent one."""
    with RawFile(path) as file:
        return read_open(file)


def _bad(file: RawFile, what: str) -> WorkerError:
    return WorkerError(f"{file.name}: broken ggml file: {what}. Copy or convert it again.")


def read_open(file: RawFile) -> GgmlIndex:
    """The index of an open file. Raises what read_ggml_index raises."""
    if file.size < 24:
        raise _bad(file, f"it has {file.size} bytes, less than a header")
    magic, version, vocab, embd, layers, number = struct.unpack("<6i", file.bytes_at(0, 24))
    if magic != MAGIC:
        raise _bad(file, f"it starts with {magic & 0xFFFFFFFF:#010x}, not {MAGIC:#010x}")
    if version not in (100, 101):
        raise _bad(file, f"its version is {version}; there are 100 and 101")
    if min(vocab, embd, layers) <= 0:
        raise _bad(file, f"vocabulary {vocab}, embedding {embd} and layers {layers} make no model")
    if number not in TYPES:
        raise _bad(file, f"its data type {number} is unknown")
    if version == 100 and number > 1:
        raise WorkerError(
            f"{file.name}: a quantized ggml file of version 100, whose blocks nothing reads any more; convert it again"
        )
    index, types, numbered_by = _numbered(file, number)
    if "emb.weight" in index and index["emb.weight"].shape != (vocab, embd):
        raise _bad(file, f"its header says {[vocab, embd]} and emb.weight is {list(index['emb.weight'].shape)}")
    return GgmlIndex(version, vocab, embd, layers, types[number][0], index, numbered_by)


def _numbered(file: RawFile, number: int) -> tuple[dict[str, GgmlTensor], Types, str]:
    """All tensors, the file's numbers of types, and whose those are, by the first reading that fits."""
    try:
        return _tensors(file, TYPES), TYPES, "rwkv.cpp"
    except WorkerError:
        if number not in NUMBERS_OF_0_1:
            raise
        with contextlib.suppress(WorkerError):
            return _tensors(file, _TYPES_OF_0_1), _TYPES_OF_0_1, "rwkvflow 0.1"
        raise


def _tensors(file: RawFile, types: Types) -> dict[str, GgmlTensor]:
    """All tensors, where `types` are those of the file's numbers. Raises WorkerError."""
    tensors: dict[str, GgmlTensor] = {}
    at = 24
    while at < file.size:
        tensor = _tensor(file, at, len(tensors), types)
        if tensor.name in tensors:
            raise _bad(file, f"two tensors are called {tensor.name!a}")
        if len(tensors) >= MAX_TENSORS:
            raise _bad(file, f"it has more than {MAX_TENSORS} tensors")
        tensors[tensor.name] = tensor
        at = tensor.offset + tensor.nbytes
    return tensors


def _tensor(file: RawFile, at: int, index: int, types: Types) -> GgmlTensor:
    if at + 12 > file.size:
        raise _bad(file, f"it is cut short in the header of tensor {index}")
    dimensions, length, number = struct.unpack("<3i", file.bytes_at(at, 12))
    at += 12
    if not 1 <= dimensions <= MAX_DIMENSIONS or not 1 <= length <= MAX_KEY or number not in types:
        raise _bad(file, f"tensor {index} has {dimensions} dims, a key of {length} bytes and data type {number}")
    if at + 4 * dimensions + length > file.size:
        raise _bad(file, f"it is cut short in the header of tensor {index}")
    raw = file.bytes_at(at, 4 * dimensions + length)
    at += len(raw)
    shape = tuple(reversed(struct.unpack_from(f"<{dimensions}i", raw)))
    try:
        name = raw[4 * dimensions :].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(file, f"the key of tensor {index} is not UTF-8") from error
    if not name.isprintable() or min(shape) <= 0:
        raise _bad(file, f"tensor {index} ({name[:100]!a}) has the dims {list(shape)}")
    kind = types[number][0]
    try:
        nbytes = tensor_bytes(kind, shape)
    except ValueError as error:
        raise _bad(file, f"tensor {name!a}: {error}") from error
    if nbytes > file.size - at:
        raise _bad(file, f"it is cut short: {name!a} needs {nbytes} bytes and {file.size - at} are left")
    return GgmlTensor(name, kind, shape, at, nbytes)
