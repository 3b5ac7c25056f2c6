"""`python3 -m rwkvflow.worker in/request.json`: carries out one task inside a sandbox."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rwkvflow.worker.advice import given_by_recipe
from rwkvflow.worker.errors import WorkerError, is_disk_full
from rwkvflow.worker.protocol import emit, open_channel

TASKS = ("ask", "assign", "build-engine", "convert", "imatrix", "measure", "quality", "reference", "smoke")


def main(argv: list[str]) -> int:
    """Exit code 0 when every job was carried out, 1 with a message when the task as a whole failed."""
    if len(argv) != 1:
        print("usage: python3 -m rwkvflow.worker REQUEST.json", file=sys.stderr)
        return 2
    try:
        request = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        if channel := request.get("channel"):
            open_channel(Path(channel))
        task = request["task"]
        if task not in TASKS:
            raise WorkerError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
        module = importlib.import_module("rwkvflow.worker.tasks." + task.replace("-", "_"))
        with given_by_recipe():
            module.run(request)
    except (WorkerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if is_disk_full(error):
            emit(full=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
