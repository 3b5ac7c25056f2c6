"""Artifacts whose values are all 0: everything else is as their format has it, and no engine is needed."""

from __future__ import annotations

from rwkvflow.worker.write.layout import Writer


def write_zeros(writer: Writer) -> None:
    """All values of an artifact, and its end."""
    for slots in writer.slots.values():
        for slot in slots:
            writer.write(slot, 0, memoryview(bytes(slot.size)))
            writer.put(slot, 0, memoryview(bytes(slot.size)))
    writer.close()
