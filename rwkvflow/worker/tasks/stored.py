"""The process in which the task "smoke" asks layouts how they keep weights, since for that the engine is loaded.

    python3 -m rwkvflow.worker.tasks.stored '{"formats": {name: mix or null}, "params": {...}}'

Prints {format: [how many values the tensors have, bytes that they take]}.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.mix import Mix
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import origin_of
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.tasks.given import given_mix


def main(argv: list[str]) -> int:
    """Exit code 1 with a message where a layout refuses."""
    asked = json.loads(argv[0])
    try:
        origin = origin_of(Path("in"), asked["params"])
        with open_checkpoint(origin) as checkpoint:
            found = {
                name: _stored(name, given_mix(name, mix), checkpoint, origin.folder)
                for name, mix in asked["formats"].items()
            }
    except (WorkerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


def _stored(name: str, mix: Mix | None, checkpoint: Checkpoint, folder: Path) -> tuple[int, int]:
    """What the layout of such a file gives the checkpoint's tensors; nothing is written but empty files."""
    item, architecture = replace(FORMATS[name], mix=mix).beside(folder), architecture_of(checkpoint.tensors)
    held = item.held(architecture, checkpoint.tensors)
    with tempfile.TemporaryDirectory(prefix=".layout-") as place:
        writer = item.open(Path(place) / "empty", architecture, held, Path("in/engine"))
        try:
            taken = sum(slot.size for slots in writer.slots.values() for slot in slots)
        finally:
            writer.abort()
    return sum(info.numel for info in held.values()), taken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
