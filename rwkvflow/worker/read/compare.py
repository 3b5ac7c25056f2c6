"""How two model files differ, tensor by tensor, whatever their formats.

Files of rwkv.cpp, llama.cpp, web-rwkv (.prefab, too), faster-rwkv and the rwkv package are compared under the author's
names and shapes, quantized tensors by the values that they stand for; any other .pth or safetensors file under the
names that it has. A matrix that one of them has the other way round is turned, one value a head meets a head full of
it, and an embedding that ln0 is folded into meets one that it is folded into here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.maps import web_rwkv
from rwkvflow.worker.model.rounding import layer_norm, rounded
from rwkvflow.worker.read import ggml_source, gguf_source
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.dequantize import BLOCK_BYTES, dequantize
from rwkvflow.worker.read.packed.packed_file import HEAD, kind_of, read_packed_open
from rwkvflow.worker.read.packed.packed_source import AuthorTensor, author_tensors, of_package
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.shards import open_model

EMBEDDING, LN0 = "emb.weight", ("blocks.0.ln0.weight", "blocks.0.ln0.bias")
PIECE = 1 << 22  # values compared at a time


@dataclass(frozen=True)
class Difference:
    """One tensor. kind: equal, values, shape, first (only in the first file) or second.

    dtypes, shapes  of both; "" and () where a file does not have it
    largest         difference of two values; relative: root of the mean square of the differences over that of the
                    first file's values (0 where all are 0)
    """

    name: str
    kind: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    largest: float = 0.0
    relative: float = 0.0


def compare(first: Path, second: Path) -> Iterator[Difference]:
    """Every tensor in the first file's order, then those of the second alone. Raises WorkerError."""
    with _open(first) as one, _open(second) as other:
        ours, theirs = _folded(one, other), _folded(other, one)
        # A bonus is time_first in versions 4 to 5.1, and in web-rwkv's files of all.
        known = {web_rwkv.name_in_file(name): b for name, b in theirs.items()}
        for name, a in ours.items():
            b = known.pop(web_rwkv.name_in_file(name), None)
            if b is None:
                yield Difference(name, "first", (a.dtype, ""), (a.shape, ()))
            elif len(a.shape) == 2 and a.shape == b.shape[::-1] != b.shape:
                yield replace(_values(name, a, _turned(b)), shapes=(a.shape, b.shape))
            elif _flat(a.shape) == _flat(b.shape[:1]) and _flat(a.shape) != _flat(b.shape):
                yield replace(_values(name, _spread(a, b.shape), b), shapes=(a.shape, b.shape))
            elif _flat(b.shape) == _flat(a.shape[:1]) and _flat(a.shape) != _flat(b.shape):
                yield replace(_values(name, a, _spread(b, a.shape)), shapes=(a.shape, b.shape))
            elif _flat(a.shape) != _flat(b.shape):
                yield Difference(name, "shape", (a.dtype, b.dtype), (a.shape, b.shape))
            else:
                yield _values(name, a, b)
        for name, b in theirs.items():
            if web_rwkv.name_in_file(name) in known:
                yield Difference(name, "second", ("", b.dtype), ((), b.shape))


def _folded(tensors: Mapping[str, AuthorTensor], other: Mapping[str, AuthorTensor]) -> dict[str, AuthorTensor]:
    """The tensors, with ln0 in the embedding where the other file has it there."""
    found = dict(tensors)
    embedding, norm = found.get(EMBEDDING), [found.get(name) for name in LN0]
    if EMBEDDING not in other or not other[EMBEDDING].folded or embedding is None or embedding.folded:
        return found
    weight, bias = norm
    if weight is None or bias is None:
        return found
    whole = embedding

    def rows(start: int, count: int | None) -> NDArray[np.float32]:
        values, (w, b) = whole.rows(start, count), (part.rows(0, None).reshape(-1) for part in (weight, bias))
        return np.asarray(rounded(whole.dtype, layer_norm(values, w, b)), np.float32)

    for name in LN0:
        del found[name]
    return {**found, EMBEDDING: replace(embedding, rows=rows, folded=True)}


def _turned(tensor: AuthorTensor) -> AuthorTensor:
    """A matrix the other way round, as some formats hold the low-rank ones, which are small."""

    def rows(start: int, count: int | None) -> NDArray[np.float32]:
        return tensor.rows(0, None).T[start : None if count is None else start + count]

    return AuthorTensor(tensor.dtype, tensor.shape[::-1], rows)


def _spread(tensor: AuthorTensor, shape: tuple[int, ...]) -> AuthorTensor:
    """A vector as a matrix with its values in columns: versions 5.0 and 5.1 have one a head, and 5.2 a head of them."""

    def rows(start: int, count: int | None) -> NDArray[np.float32]:
        values = tensor.rows(0, None).reshape(-1)[start : None if count is None else start + count]
        return np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 1)), (len(values), *shape[1:]))

    return AuthorTensor(tensor.dtype, shape, rows)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions of size 1 do not count: [1, 1, n] and [n] hold the same."""
    return tuple(size for size in shape if size != 1)


def _values(name: str, a: AuthorTensor, b: AuthorTensor) -> Difference:
    largest = squares = own = 0.0
    same = True
    for start, rows in _slices(a.shape):
        if a.shape == b.shape:
            x, y = a.rows(start, rows), b.rows(start, rows)
        else:
            x, y = a.rows(0, None).reshape(-1), b.rows(0, None).reshape(-1)
        if np.array_equal(x, y, equal_nan=True):
            own += float(np.square(np.nan_to_num(x), dtype=np.float64).sum())
            continue
        same = False
        with np.errstate(all="ignore"):
            off = np.abs(x.astype(np.float64) - y)
        off = np.where(np.isnan(off), np.inf, off)
        off = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, off)
        largest = max(largest, float(off.max()))
        squares += float(np.square(off).sum())
        own += float(np.square(np.nan_to_num(x), dtype=np.float64).sum())
        if a.shape != b.shape:
            break
    relative = math.sqrt(squares / own) if own else (0.0 if squares == 0 else math.inf)
    kind = "equal" if same else "values"
    return Difference(name, kind, (a.dtype, b.dtype), (a.shape, b.shape), largest, relative)


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[int, int | None]]:
    if not shape or not shape[0]:
        yield 0, None
        return
    step = max(1, PIECE * shape[0] // max(1, math.prod(shape)))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


@contextmanager
def _open(path: Path) -> Iterator[Mapping[str, AuthorTensor]]:
    with open_model(path) as file:
        head = file.bytes_at(0, min(file.size, 4))
        quantized: dict[str, Any] = {}
        if head in (b"fmgg", b"GGUF"):
            index = (ggml_source if head == b"fmgg" else gguf_source).read_index(file, quantized)
            with Checkpoint(path, index) as checkpoint:
                yield {**_plain(checkpoint), **{name: _quantized(file, name, t) for name, t in quantized.items()}}
            return
        if kind_of(file.bytes_at(0, min(file.size, HEAD))):
            yield author_tensors(file, read_packed_open(file))
            return
    with Checkpoint(path) as checkpoint:
        plain = _plain(checkpoint)
        halved_every = checkpoint.metadata.get("_rescale_layer")  # of the rwkv package's own files
        yield plain if halved_every is None else of_package(checkpoint.name, plain, halved_every)


def _plain(checkpoint: Checkpoint) -> dict[str, AuthorTensor]:
    def rows(name: str) -> Callable[[int, int | None], NDArray[np.float32]]:
        return lambda start, count: checkpoint.float32(name, start, count)

    def swapped(name: str) -> Callable[[int, int | None], NDArray[np.float32]]:
        return lambda start, count: np.swapaxes(checkpoint.float32(name), -1, -2)[
            start : None if count is None else start + count
        ]

    authors = web_rwkv.author_names(checkpoint.tensors) or checkpoint.tensors
    return {
        info.name: AuthorTensor(
            info.dtype,
            tuple(info.shape),
            swapped(name) if authors is not checkpoint.tensors and web_rwkv.is_swapped(name) else rows(name),
        )
        for name, info in authors.items()
    }


def _quantized(file: RawFile, name: str, tensor: Any) -> AuthorTensor:
    if tensor.type not in BLOCK_BYTES:
        raise WorkerError(f"{file.name}: {name} is {tensor.type}, which cannot be read here")

    def rows(start: int, count: int | None) -> NDArray[np.float32]:
        stop = tensor.shape[0] if count is None else start + count
        row = tensor.nbytes // max(1, tensor.shape[0])
        data = file.bytes_at(tensor.offset + start * row, (stop - start) * row)
        return dequantize(tensor.type, data).reshape(stop - start, *tensor.shape[1:])

    return AuthorTensor(tensor.type, tensor.shape, rows)
