"""One interface to checkpoints, read lazily and without torch.

They are `.pth` (zip-based torch files) and `.safetensors`, unquantized files of rwkv.cpp (`.bin`), llama.cpp
(`.gguf`) and Hugging Face models, whose tensors are given their author's names and shapes back. A model in several
files is named by its index, its first shard or its folder (see shards).

    with open_checkpoint("model.pth") as checkpoint:  # of rwkvflow.worker.read.open
        for name, info in checkpoint.tensors.items():
            weights = checkpoint.float32(name)

Nothing is unpickled (see pickle_reader), every size and place is checked before it is used, and no more is held in
memory than the array that is asked for: rows are read into it, and nothing is mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.maps.prefixes import plain_names
from rwkvflow.worker.model.rounding import bf16_to_float32
from rwkvflow.worker.model.tensorinfo import ModelTensors, TensorInfo
from rwkvflow.worker.read import ggml_source, gguf_source, hf_source, safetensors_file, shards
from rwkvflow.worker.read.kinds import kind_of
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file import pth

Rows = Callable[[int, int | None], NDArray[Any]]  # first row, number of rows (None: to the end)

#: The numpy dtype in which `read` gives each dtype; numpy has no bfloat16 and float8, so these come as bits.
NUMPY: Final[dict[str, str]] = {
    "f64": "<f8",
    "f32": "<f4",
    "f16": "<f2",
    "bf16": "<u2",
    "f8_e4m3": "u1",
    "f8_e5m2": "u1",
    "i64": "<i8",
    "i32": "<i4",
    "i16": "<i2",
    "i8": "i1",
    "u64": "<u8",
    "u32": "<u4",
    "u16": "<u2",
    "u8": "u1",
    "bool": "u1",
}
_READERS: Final[dict[str, Callable[[RawFile], pth.Index]]] = {
    "pth": pth.read_index,
    "safetensors": safetensors_file.read_index,
    "ggml": ggml_source.read_index,
    "gguf": gguf_source.read_index,
}


class Checkpoint:
    """An open checkpoint. Use it as a context manager, or close it.

    kind      "pth", "safetensors", "ggml" or "gguf"
    tensors   name to TensorInfo in the file's order; what wrapped the model ("module.") is taken off the names
    said      what a config.json beside the file says of the model and no tensor tells
    metadata  small values that stand beside the tensors (`_strategy` and `_version` of ChatRWKV's own files, say)
    ignored   names of other values beside them
    """

    def __init__(self, path: Path | str, index: pth.Index | None = None) -> None:
        """See rwkvflow.worker.read.open; `index` where the file was read already."""
        self.path = Path(path)
        self._replaced: dict[str, Rows] = {}
        self._file = shards.open_model(path)
        self._others: list[Checkpoint] = []
        try:
            self.kind = kind_of(self._file)
            index = index or _read(self._file, self.kind)
        except BaseException:
            self._file.close()
            raise
        self._index = index
        self.metadata = index.metadata
        self.ignored = index.ignored
        self.said = index.said
        self._tensors = ModelTensors({name: view.info for name, view in index.views.items()}, index.said)
        self.tensors: Mapping[str, TensorInfo] = self._tensors

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its files; arrays that were read stay valid."""
        self._file.close()
        for other in self._others:
            other.close()

    @property
    def name(self) -> str:
        """For messages."""
        return self._file.name

    @property
    def is_plain(self) -> bool:
        """Whether it is a single file, and all that is read stands in it under the same names."""
        single = self._file.path == self.path and not isinstance(self._file, shards.Joined)
        return single and not self._replaced and self._index.renamed is None

    def replace(self, info: TensorInfo, rows: Rows) -> None:
        """From now on the tensor info.name, which may be new, is what `rows` gives: raw values of info's dtype."""
        self._tensors[info.name] = info
        self._replaced[info.name] = rows

    def remove(self, name: str) -> None:
        """From now on there is no such tensor."""
        del self._tensors[name]

    def closing(self, other: Checkpoint) -> None:
        """Close another one, which values come from, together with this."""
        self._others.append(other)

    def read(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[Any]:
        """The raw values of rows [start_row, start_row + rows) of the first dimension, all by default.

        A new C-contiguous array of NUMPY[dtype] with the tensor's own number of dimensions. A scalar has no rows and
        comes whole. Raises WorkerError for an unknown name, and IndexError for rows that it does not have.
        """
        if name not in self._tensors:
            raise WorkerError(f"{self.name}: there is no tensor {name!a}")
        if rows_of := self._replaced.get(name):
            return rows_of(start_row, rows)
        return self.original(name, start_row, rows)

    def original(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[Any]:
        """The rows as the file holds them, even if other values were put in the tensor's place."""
        if change := self._index.changes.get(name):
            whole: NDArray[Any] = change(self._read(name, 0, None))
            stop = None if rows is None else start_row + rows
            return np.ascontiguousarray(whole[start_row:stop]) if whole.ndim else whole
        return self._read(name, start_row, rows)

    def _read(self, name: str, start_row: int, rows: int | None) -> NDArray[Any]:
        view = self._index.views[name]
        shape, first = view.info.shape, 0
        if shape:
            count = shape[0] - start_row if rows is None else rows
            if start_row < 0 or count < 0 or start_row + count > shape[0]:
                raise IndexError(f"rows {start_row} to {start_row + count} of {name}, which has {shape[0]}")
            shape, first = (count, *shape[1:]), start_row * view.stride[0]
        dtype = np.dtype(NUMPY[view.info.dtype])
        base = view.base + first * dtype.itemsize
        try:
            out = np.empty(shape, dtype)
        except ValueError:  # of no values, but with other sizes that no array can have
            raise WorkerError(f"{self._file.name}: tensor {name!a} has the absurd shape {list(shape)}") from None
        if out.size == 0:
            return out
        if _row_major(shape, view.stride):
            self._file.into(memoryview(out.reshape(-1).view(np.uint8)), base)  # type: ignore[arg-type]
            return out
        # A transposed or sliced view: read the stretch of its storage that it spans, then walk it.
        extent = _extent(shape, view.stride)
        stretch = np.empty(extent, dtype)
        self._file.into(memoryview(stretch.view(np.uint8)), base)  # type: ignore[arg-type]
        steps = tuple(step * dtype.itemsize for step in view.stride)
        np.copyto(out, np.lib.stride_tricks.as_strided(stretch, shape, steps, writeable=False))
        return out

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """As `read`, converted to float32: exact for f32, f16, bf16, small integers; f64 is rounded to nearest."""
        info = self.tensors.get(name)
        if info is not None and info.dtype.startswith("f8"):
            raise WorkerError(f"{self.name}: tensor {name!a} is {info.dtype}, which is not supported")
        raw = self.read(name, start_row, rows)
        if info is not None and info.dtype == "bf16":
            return bf16_to_float32(raw)
        with np.errstate(over="ignore"):
            return raw.astype("<f4", copy=False)

    def verify(self, on_bytes: Callable[[int], None] | None = None) -> int:
        """Reads every byte that has a checksum in the file and compares; gives how many there were.

        A .pth has one CRC-32 per storage; safetensors has none (0 bytes). Raises WorkerError naming what is damaged.
        """
        return self._index.check(on_bytes)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _read(file: RawFile, kind: str) -> pth.Index:
    """The index of an open model, with the author's names."""
    if isinstance(file, shards.Joined) and kind != "gguf":  # whose reader knows shards
        index = shards.merged(file, _READERS[kind])
    else:
        index = _READERS[kind](file)
    if kind in ("pth", "safetensors"):
        index = _unwrapped(index, file.name)
    return hf_source.with_own_names(file, index)


def _unwrapped(index: pth.Index, where: str) -> pth.Index:
    """The same without what programs for training put around names. Raises WorkerError as plain_names does."""
    names = plain_names(index.views, where)
    if all(theirs == ours for theirs, ours in names.items()):
        return index
    views = {ours: index.views[theirs] for theirs, ours in names.items()}
    views = {name: replace(view, info=replace(view.info, name=name)) for name, view in views.items()}
    changes = {names[theirs]: change for theirs, change in index.changes.items()}
    return replace(index, views=views, changes=changes, renamed="what wrapped the model")
