"""`gguf-*`: read by PyPI's `gguf`, then run by llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf import llama
from rwkvflow.worker.formats.runner import Task
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.shards import files_of
from rwkvflow.worker.smoke.questions import Answers, Questions

ROWS = 64  # of a matrix that are compared with the checkpoint
# Of a row's largest value: what the coarsest type of four bits may be off, and those of less.
LOST = 0.16
LOST_BELOW = {"Q3_K": 0.4, "IQ3_S": 0.4, "Q2_K": 0.7, "IQ3_XXS": 0.7}
COMPARED = {
    "token_embd.weight": "emb.weight",
    "output.weight": "head.weight",
    "blk.{}.time_mix_key.weight": "blocks.{}.att.key.weight",
    "blk.{}.channel_mix_key.weight": "blocks.{}.ffn.key.weight",
    "blk.{}.ffn_up.weight": "blocks.{}.ffn.up.weight",  # of a hybrid
}


def run(task: Task, questions: Questions) -> Answers:
    """llama.cpp's answers, after a look at the file, or its shards, with `gguf`. Raises WorkerError."""
    files = files_of(task.artifact)
    with task.open_source() as checkpoint:
        compare(files, checkpoint)
    size = sum(path.stat().st_size for path in files)
    return llama.answers(task.engine.with_name("llama"), files[0], questions, size)


def compare(files: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Raises WorkerError where PyPI's gguf cannot read the files, or reads other weights than the checkpoint's."""
    try:
        readers = [gguf.GGUFReader(path) for path in files]
    except Exception as error:  # the package raises what numpy and mmap do
        raise WorkerError(f"the gguf package cannot read it: {type(error).__name__}: {error}") from None
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    count = sum(1 for name in checkpoint.tensors if name.endswith(".ln1.weight"))
    names = dict.fromkeys((a.format(i), b.format(i)) for i in range(count) for a, b in COMPARED.items())
    for theirs, ours in names:
        if ours not in checkpoint.tensors:
            continue
        if theirs not in tensors:
            raise WorkerError(f"the file has no tensor {theirs}")
        _compare(tensors[theirs], checkpoint.float32(ours, 0, ROWS), tuple(checkpoint.tensors[ours].shape))


def _compare(tensor: Any, ours: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if tuple(int(size) for size in tensor.shape) != shape[::-1]:
        raise WorkerError(f"{tensor.name} is of shape {list(tensor.shape)}, and should be {list(shape[::-1])}")
    theirs = gguf.dequantize(tensor.data[:ROWS], tensor.tensor_type).reshape(ours.shape)
    scale = np.abs(ours).max(1, keepdims=True)
    worst = float((np.abs(theirs - ours) / np.maximum(scale, 1e-6)).max())
    if not worst <= LOST_BELOW.get(tensor.tensor_type.name, LOST):
        raise WorkerError(f"{tensor.name} has other values in the file than in the checkpoint ({worst:.2g} off)")
