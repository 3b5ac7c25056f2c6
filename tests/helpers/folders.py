"""Hugging Face folders of random checkpoints, as our own writer makes them, without an engine."""

from __future__ import annotations

from pathlib import Path

from rwkvflow.worker.formats.transformers.layout import layouts
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.write.folder import FolderWriter


def folder_of(source: Path, folder: Path, shard: int = 10**12) -> Path:
    """The folder of a checkpoint, in shards of at most so many bytes."""
    with open_checkpoint(source) as checkpoint:
        tensors = checkpoint.tensors
        writer = FolderWriter(folder, layouts(architecture_of(tensors), tensors, shard=shard))
        for name in tensors:
            for slot in writer.slots.get(name, ()):
                values = checkpoint.read(name)
                if slot.encoding.transform is not None:
                    values = slot.encoding.transform.function(values)
                writer.write(slot, 0, memoryview(values.tobytes()))
                writer.put(slot, 0, memoryview(values.tobytes()))
        writer.close()
    return folder
