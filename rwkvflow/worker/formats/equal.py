"""Artifacts that hold the checkpoint's own values, bit for bit, and that nothing but our forward pass runs.

The same pass over the same values comes to the same: the reference's answers are such an artifact's, and to reckon them
again shows nothing more. So it is only run over the first tokens, through the software that reads it, and the judge,
which has the checkpoint, compares every tensor itself, with rwkvflow's own reader. For a runtime this does not hold:
what it comes to over a long text does not follow from the values that it was given, and it is always asked all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.model.architecture import architecture_of, is_state
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.smoke.held import Held, row_slices


def can_be_equal(source: Path | Origin, item: Format) -> bool:
    """Whether an artifact of this checkpoint can be one of these. Raises WorkerError.

    It must have a place for all that the reference computes with, and initial states may have none.
    """
    if not item.may_be_equal:
        return False
    with open_checkpoint(source) as checkpoint:
        return _to_be_equal(checkpoint, item) is not None


def as_it_is(tensors: Mapping[str, TensorInfo], wanted: Mapping[str, Held]) -> bool:
    """Whether an artifact that holds `wanted` holds all of the checkpoint's tensors, and each value as fp32 has it."""
    return all(
        (held := wanted.get(name)) is not None
        and held.dtype in (info.dtype, "f32")
        and held.bound is None
        and not held.tolerance
        for name, info in tensors.items()
    )


def are_equal(source: Path | Origin, item: Format, artifact: Path) -> bool:
    """Whether the artifact, as rwkvflow reads it, has the checkpoint's names and shapes and, in fp32, its bits.

    Raises WorkerError for a checkpoint that cannot be read; an artifact that cannot is another.
    """
    if not item.may_be_equal:
        return False
    with open_checkpoint(source) as checkpoint:
        if (wanted := _to_be_equal(checkpoint, item)) is None:
            return False
        try:
            with Checkpoint(artifact) as found:
                return _equal(checkpoint, found, wanted)
        except (WorkerError, OSError):
            return False


def _to_be_equal(checkpoint: Checkpoint, item: Format) -> Mapping[str, TensorInfo] | None:
    """What an artifact holds that can be equal; None for one that cannot."""
    architecture = architecture_of(checkpoint.tensors)
    held = item.held(architecture, checkpoint.tensors)
    lost = any(is_state(name) for name in checkpoint.tensors if name not in held)
    return None if lost or item.computes_in_half(architecture) else held


def _equal(checkpoint: Checkpoint, found: Checkpoint, wanted: Mapping[str, TensorInfo]) -> bool:
    if found.tensors.keys() != wanted.keys():
        return False
    total, done = sum(info.nbytes for info in wanted.values()), 0
    for name, info in wanted.items():
        theirs = found.tensors[name]
        if tuple(theirs.shape) != tuple(info.shape):
            return False
        for start, rows in row_slices(info.shape, info.nbytes):
            if theirs.dtype == info.dtype:
                same = np.array_equal(_bits(checkpoint.read(name, start, rows)), _bits(found.read(name, start, rows)))
            else:
                ours = checkpoint.float32(name, start, rows)
                same = np.array_equal(_bits(ours), _bits(found.float32(name, start, rows)))
            if not same:
                return False
        done += info.nbytes
        progress(done, total, "B", name)
    return True


def _bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
