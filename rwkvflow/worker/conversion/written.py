"""Opens what was written, with the reader that anybody's file is opened with, before it is called done."""

from __future__ import annotations

import shutil
from pathlib import Path

from rwkvflow.worker.conversion.jobs import ConversionOutcome, format_of
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.ggml_file import read_ggml_index
from rwkvflow.worker.read.gguf_file import read_gguf_index


def check_written(outcome: ConversionOutcome) -> None:
    """Makes a failure of an artifact whose header or a tensor's place cannot be read, and removes it."""
    if outcome.written is None or outcome.failure is not None:
        return
    item = format_of(outcome.job)
    if item is None or not item.is_read_here:
        return  # what runs it opens it in the smoke stage
    path = outcome.job.path
    try:
        opened(path)
    except WorkerError as error:
        outcome.failure = f"{outcome.job.format}: what was written cannot be read: {error}"
        outcome.written = None
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def opened(path: Path) -> int:
    """The number of tensors of a model file or folder. Raises WorkerError where one has no place in it."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    if head == b"fmgg":
        return len(read_ggml_index(path).tensors)
    shards = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if head == b"GGUF" or shards:
        return len(read_gguf_index(shards[0] if shards else path).tensors)
    with Checkpoint(path) as checkpoint:
        return len(checkpoint.tensors)
