"""Importance matrices as llama.cpp's tools write them: how much an error of each column of a matrix counts.

A GGUF with general.type "imatrix", imatrix.datasets (texts), imatrix.chunk_count and imatrix.chunk_size (uint32); for
each matrix, sorted by name, NAME.in_sum2, F32 [1, columns], sums over tokens of squared inputs, and NAME.counts, F32
[1, 1]. A column's weight is in_sum2 / counts. Of the older `.dat`: int32 number of matrices; of each int32 length,
name, int32 calls, int32 columns, float32 sums (weights times calls); then int32 chunks, int32 length, the text's name.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.pairs import ARRAY, TEXT, UINT32, gguf_text, head, pair
from rwkvflow.worker.maps.gguf import BLOCK
from rwkvflow.worker.model.weight_types import F32
from rwkvflow.worker.read.gguf_file import read_open
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.write.layout import Importance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

ALIGNMENT = 32
UNIT = 32  # columns that a quantizer decides on together, at least
LARGEST = 1 << 30  # bytes of a file
MOST_MATRICES = 1 << 20
LONGEST = 1 << 20  # bytes of a name
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """sums and counts by llama.cpp's names of matrices; `name` is the file's, without its folder."""

    name: str
    sums: Mapping[str, Floats]
    counts: Mapping[str, float]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int

    @cached_property
    def digest(self) -> str:
        """sha256 over names, counts and sums: what encoded bytes depend on."""
        state = hashlib.sha256()
        for name in sorted(self.sums):
            state.update(f"{name}\0{self.counts[name]!r}\0".encode() + self.sums[name].astype("<f4").tobytes())
        return state.hexdigest()

    def importance(self, name: str, columns: int) -> tuple[Importance | None, bool]:
        """What a matrix of so many columns is encoded with, and whether some of it had to be made up; None without any.

        Where all columns of a unit were 0 on the whole text, nothing can be weighed: they count as much as the mean of
        the matrix. Raises WorkerError for another number of columns.
        """
        sums = self.sums.get(name)
        if sums is None:
            return None, False
        if sums.size != columns:
            raise WorkerError(
                f"{self.name}: {name} has {sums.size} columns, the model {columns}: an importance matrix of another one"
            )
        weights = (sums / np.float32(self.counts[name])).astype(np.float32)
        units = np.add.reduceat(weights, np.arange(0, columns, UNIT))
        dead = np.repeat(units == 0, UNIT)[:columns]
        if dead.any():
            mean = np.float32(math.fsum(weights.tolist()) / columns)
            weights = np.where(dead, mean if mean > 0 else np.float32(1), weights)
        return Importance(f"{self.digest}:{name}", weights), bool(dead.any())


def of_sums(
    version: str, sums: Mapping[str, NDArray[np.float64]], tokens: int, datasets: Sequence[str], chunk_size: int
) -> Imatrix:
    """From sums by the author's names over so many tokens. Matrices that no GGUF has are left out."""
    names = BLOCK.get(version, {})
    found: dict[str, Floats] = {}
    for name, values in sums.items():
        _, layer, part = name.split(".", 2)
        if part in names:
            found[f"blk.{layer}.{names[part]}"] = values.astype(np.float32)
    counts = dict.fromkeys(found, float(tokens))
    return Imatrix("imatrix", found, counts, tuple(datasets), tokens // chunk_size, chunk_size)


# ---- writing -----------------------------------------------------------------------------------------------------


def imatrix_bytes(matrix: Imatrix) -> bytes:
    """The GGUF; the same for the same content."""
    texts = b"".join(gguf_text(name.encode()) for name in matrix.datasets)
    pairs = [
        pair("general.type", TEXT, gguf_text(b"imatrix")),
        pair("imatrix.datasets", ARRAY, struct.pack("<IQ", TEXT, len(matrix.datasets)) + texts),
        pair("imatrix.chunk_count", UINT32, struct.pack("<I", matrix.chunks)),
        pair("imatrix.chunk_size", UINT32, struct.pack("<I", matrix.chunk_size)),
    ]
    infos, data = [], b""
    for name, values in _tensors(matrix):
        infos.append(gguf_text(name.encode()) + struct.pack("<I2QIQ", 2, values.size, 1, F32, len(data)))
        data += values.astype("<f4").tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    start = head(len(infos), pairs) + b"".join(infos)
    return start + bytes(-len(start) % ALIGNMENT) + data


def _tensors(matrix: Imatrix) -> Iterator[tuple[str, Floats]]:
    for name in sorted(matrix.sums):
        yield name + SUMS, matrix.sums[name]
        yield name + COUNTS, np.asarray([matrix.counts[name]], np.float32)


# ---- reading -----------------------------------------------------------------------------------------------------


def read_imatrix(path: Path) -> Imatrix:
    """A GGUF or a `.dat`. Raises WorkerError for a damaged file, or one of something else."""
    with RawFile(path) as file:
        if file.size > LARGEST:
            raise WorkerError(f"{file.name}: no importance matrix: {file.size} bytes")
        found = _of_gguf(file) if file.size >= 4 and file.bytes_at(0, 4) == b"GGUF" else _of_dat(file)
    for name, sums in found.sums.items():
        count = found.counts[name]
        if not sums.size or not np.isfinite(sums).all() or (sums < 0).any() or not 0 < count < math.inf:
            raise WorkerError(f"{path.name}: the importance of {name!a} makes no sense; compute it again")
    if not found.sums:
        raise WorkerError(f"{path.name}: an importance matrix of nothing")
    return found


def _of_gguf(file: RawFile) -> Imatrix:
    index = read_open(file)
    kind = index.metadata.get("general.type")
    if kind != "imatrix":
        raise WorkerError(f"{file.name}: a GGUF of the type {str(kind)[:40]!a}, and no importance matrix")

    def number(key: str) -> int:
        value = index.metadata.get(key, 0)
        if type(value) is not int or not 0 <= value < 2**32:
            raise WorkerError(f"{file.name}: broken importance matrix: {key} is {str(value)[:40]!a}")
        return value

    def floats(name: str) -> Floats:
        tensor = index.tensors.get(name)
        if tensor is None or tensor.type != "f32":
            raise WorkerError(f"{file.name}: broken importance matrix: {name[:100]!a} is missing, or not F32")
        return np.frombuffer(file.bytes_at(tensor.offset, tensor.nbytes), "<f4").astype(np.float32)

    names = [name.removesuffix(SUMS) for name in index.tensors if name.endswith(SUMS)]
    counts = {name: floats(name + COUNTS) for name in names}
    if odd := next((name for name in names if counts[name].size != 1), None):
        raise WorkerError(f"{file.name}: {odd!a} has {counts[odd].size} experts, and RWKV has none")
    listed: Any = index.metadata.get("imatrix.datasets", [])
    if isinstance(listed, dict):
        listed = listed["first"]
    datasets = tuple(str(item) for item in listed) if isinstance(listed, list) else ()
    return Imatrix(
        file.name,
        {name: floats(name + SUMS) for name in names},
        {name: float(counts[name][0]) for name in names},
        datasets,
        number("imatrix.chunk_count"),
        number("imatrix.chunk_size"),
    )


def _of_dat(file: RawFile) -> Imatrix:
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if not 0 <= count <= file.size - at:
            raise WorkerError(f"{file.name}: neither a GGUF nor a whole `.dat` of an importance matrix")
        at += count
        return bytes(file.bytes_at(at - count, count))

    def whole(largest: int) -> int:
        (value,) = struct.unpack("<i", take(4))
        if not 0 <= value <= largest:
            raise WorkerError(f"{file.name}: neither a GGUF nor a whole `.dat` of an importance matrix")
        return int(value)

    sums: dict[str, Floats] = {}
    counts: dict[str, float] = {}
    for _ in range(whole(MOST_MATRICES)):
        name = take(whole(LONGEST)).decode("utf-8", "backslashreplace")
        if name in sums:
            raise WorkerError(f"{file.name}: {name[:100]!a} is there twice")
        counts[name] = float(whole(2**31 - 1))
        sums[name] = np.frombuffer(take(4 * whole(2**28)), "<f4").astype(np.float32)
    chunks = 0
    dataset: tuple[str, ...] = ()
    if at < file.size:  # files of 2024 and before end here
        chunks = whole(2**31 - 1)
        dataset = (take(whole(LONGEST)).decode("utf-8", "backslashreplace"),)
    return Imatrix(file.name, sums, counts, dataset, chunks, 0)
