"""What an artifact holds, seen as the checkpoint's own tensors, and compared with them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.rounding import rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.read.checkpoint import Checkpoint

COMPARED_BYTES = 1 << 24  # of a tensor at a time
Change = Callable[[NDArray[Any]], NDArray[Any]]


class HeldTensors(Protocol):
    """An artifact's tensors under its own names."""

    tensors: Mapping[str, TensorInfo]

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""


@dataclass(frozen=True)
class Held:
    """Where an artifact should hold a tensor of the checkpoint.

    `change` makes the checkpoint's values (float32) what the artifact should hold, `back` the reverse; both None where
    the values stand as they are, so that rows can be compared by themselves.
    """

    name: str
    dtype: str  # "f32", "f16" or "bf16"
    shape: tuple[int, ...]
    change: Change | None = None
    back: Change | None = None
    tolerance: float = 0.0  # largest difference, relative to the largest of the tensor's values
    # In place of the tolerance: the largest difference of each value, made of the checkpoint's as they should be.
    bound: Change | None = None


def compare_held(checkpoint: Checkpoint, artifact: HeldTensors, wanted: Mapping[str, Held]) -> None:
    """Raises WorkerError unless the artifact holds each of `wanted` (by the checkpoint's name), and nothing else."""
    names = {held.name for held in wanted.values()}
    missing = [name for name in sorted(names) if name not in artifact.tensors]
    added = [name for name in artifact.tensors if name not in names]
    if missing or added:
        raise WorkerError(f"the artifact {f'lacks {missing[0]!a}' if missing else f'has {added[0]!a} besides'}")
    total = sum(checkpoint.tensors[source].nbytes for source in wanted)
    done = 0
    for source, held in wanted.items():
        found = artifact.tensors[held.name]
        if (tuple(found.shape), found.dtype) != (held.shape, held.dtype):
            raise WorkerError(
                f"{held.name} is {found.dtype} {list(found.shape)} in the artifact; "
                f"{held.dtype} {list(held.shape)} is expected"
            )
        if held.change is not None:
            _compare(held, held.change(checkpoint.float32(source)), artifact.float32(held.name))
        else:
            info = checkpoint.tensors[source]
            for start, rows in row_slices(info.shape, info.nbytes):
                ours = checkpoint.float32(source, start, rows)
                _compare(held, ours, artifact.float32(held.name, start, rows))
        done += checkpoint.tensors[source].nbytes
        progress(done, total, "B", source)


def _compare(held: Held, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    expected = rounded(held.dtype, ours.reshape(theirs.shape))
    if np.array_equal(expected, theirs, equal_nan=True):
        return
    with np.errstate(all="ignore"):
        difference = np.abs(expected.astype(np.float64) - theirs)
        worst = float(np.nanmax(difference))
        largest = float(np.nanmax(np.abs(expected))) or 1.0
    if held.bound is not None:
        fits = bool((difference <= held.bound(expected)).all())
    else:
        fits = worst <= held.tolerance * largest
    if not fits:
        raise WorkerError(f"{held.name} holds other values than the checkpoint: one is off by {worst:.3g}")


def row_slices(shape: tuple[int, ...], nbytes: int) -> Iterator[tuple[int, int | None]]:
    """(first row, number of rows) of slices of about COMPARED_BYTES."""
    if not shape or not shape[0]:
        yield 0, None
        return
    step = max(1, COMPARED_BYTES * shape[0] // max(nbytes, 1))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


class AsCheckpoint:
    """An artifact under the checkpoint's names and shapes, for the reference's forward pass."""

    def __init__(self, artifact: HeldTensors, wanted: Mapping[str, Held], tensors: Mapping[str, TensorInfo]) -> None:
        """`tensors` are the checkpoint's; those that `wanted` does not have are left out."""
        self._artifact = artifact
        self._wanted = wanted
        self.tensors: Mapping[str, Any] = {name: info for name, info in tensors.items() if name in wanted}

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        held, shape = self._wanted[name], tuple(self.tensors[name].shape)
        if held.back is None and (not shape or held.shape[:1] == shape[:1]):
            found = self._artifact.float32(held.name, start_row, rows)
            return found.reshape((-1, *shape[1:]) if shape else ())
        values = self._artifact.float32(held.name)
        values = (values if held.back is None else held.back(values)).reshape(shape)
        stop = shape[0] if rows is None else start_row + rows
        return np.ascontiguousarray(values[start_row:stop])


def swap(values: NDArray[Any]) -> NDArray[Any]:
    """The last two dims swapped; its own reverse."""
    return np.ascontiguousarray(values.swapaxes(-1, -2))
