"""Opens what a model is made of: a checkpoint, with what is merged into it and goes along with it."""

from __future__ import annotations

from pathlib import Path

from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.strangers import ignored
from rwkvflow.worker.read import adapters
from rwkvflow.worker.read.checkpoint import Checkpoint


def open_checkpoint(source: Path | str | Origin) -> Checkpoint:
    """Opens a checkpoint of one of the kinds; which one is told from its bytes, not its name.

    Of an Origin, what it ignores is left out, its LoRA is merged as tensors are read, and its initial states are there
    as tensors. Raises WorkerError, which names the file, what is wrong with it, and the remedy.
    """
    if not isinstance(source, Origin):
        return Checkpoint(source)
    checkpoint = Checkpoint(source.path)
    try:
        for name in ignored(checkpoint.tensors, source.ignore):
            checkpoint.remove(name)
        adapters.apply(checkpoint, source)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint
