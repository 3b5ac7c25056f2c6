"""Safetensors files through PyPI's package of that name, as the checkpoint's reader gives tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.rounding import bf16_to_float32
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.shards import files_of
from rwkvflow.worker.smoke.held import row_slices


class SafetensorsFile:
    """A .safetensors, or a folder of its parts, through PyPI's safetensors, with the interface that Reference reads.

    Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        """Raises WorkerError when the package refuses the file."""
        import safetensors

        self._failure = safetensors.SafetensorError
        try:
            self._files: list[Any] = [safetensors.safe_open(str(part), framework="np") for part in files_of(path)]
        except (self._failure, OSError) as error:
            raise WorkerError(f"the safetensors package refuses it: {error}") from None
        self._holders: dict[str, Any] = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self._slices: dict[str, Any] = {name: file.get_slice(name) for name, file in self._holders.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, str(part.get_dtype()).lower(), tuple(part.get_shape()))  # F32 is our f32
            for name, part in self._slices.items()
        }

    def __enter__(self) -> SafetensorsFile:
        for file in self._files:
            file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.__exit__(*error)

    def raw(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[Any]:
        """Rows of a tensor in its own type; bf16 as uint16."""
        part, info = self._slices[name], self.tensors[name]
        with _bfloat16_as_bits():
            if not info.shape or (rows is None and not start_row):
                found = np.asarray(self._holders[name].get_tensor(name))
            else:
                found = np.asarray(part[start_row : info.shape[0] if rows is None else start_row + rows])
        return found.view(np.uint16) if info.dtype == "bf16" else found

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        raw = self.raw(name, start_row, rows)
        return bf16_to_float32(raw) if self.tensors[name].dtype == "bf16" else raw.astype(np.float32)


@contextlib.contextmanager
def _bfloat16_as_bits() -> Iterator[None]:
    """numpy has no bfloat16, and the package asks numpy for the dtype of that name: lend it uint16."""
    known: dict[Any, Any] = np.sctypeDict
    if "bfloat16" in known:  # of ml_dtypes, which onnx imports
        yield
        return
    known["bfloat16"] = np.uint16
    try:
        yield
    finally:
        del known["bfloat16"]


def compare_tensors(checkpoint: Checkpoint, artifact: SafetensorsFile) -> None:
    """Raises WorkerError unless both hold the same names with the same types, shapes and bytes."""
    missing = [name for name in checkpoint.tensors if name not in artifact.tensors]
    added = [name for name in artifact.tensors if name not in checkpoint.tensors]
    if missing or added:
        what = f"lacks {missing[0]!a}" if missing else f"has {added[0]!a} besides"
        raise WorkerError(f"the artifact {what}: its tensors are not the checkpoint's")
    total, done = sum(info.nbytes for info in checkpoint.tensors.values()), 0
    for name, info in checkpoint.tensors.items():
        found = artifact.tensors[name]
        if (found.shape, found.dtype) != (tuple(info.shape), info.dtype):
            raise WorkerError(
                f"{name} is {found.dtype} {list(found.shape)} in the artifact "
                f"and {info.dtype} {list(info.shape)} in the checkpoint"
            )
        for start, rows in row_slices(info.shape, info.nbytes):
            ours, theirs = checkpoint.read(name, start, rows), artifact.raw(name, start, rows)
            if ours.tobytes() != theirs.tobytes():
                raise WorkerError(f"{name} has other bytes in the artifact than in the checkpoint")
        done += info.nbytes
        progress(done, total, "B", name)
