"""The process in which the task "ask" runs artifacts with the software of their users: a crash fails one artifact.

    python3 -m rwkvflow.worker.tasks.consume ORDER.json

The order lists artifacts; for each, the answers go to `<answers>` or a message to `<answers>.error`. A process that
dies leaves neither for the artifact that killed it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rwkvflow.worker.advice import given_by_recipe
from rwkvflow.worker.errors import WorkerError, is_disk_full
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import Task, run_artifact
from rwkvflow.worker.model.origin import origin_of
from rwkvflow.worker.protocol import about
from rwkvflow.worker.smoke.questions import read_questions, write_answers


def main(argv: list[str]) -> int:
    """Runs one artifact after the other; exits with 0 when each has answers or a message."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    questions, eps = read_questions(Path(order["questions"]), speed=order.get("speed", False))
    origin = origin_of(Path(order["checkpoint"]).parent, order)
    for entry in order["artifacts"]:
        about(entry.get("job"))
        answers = Path(entry["answers"])
        partial = answers.with_suffix(".part")
        try:
            if (found := FORMATS.get(entry["format"])) is None:
                raise WorkerError(f"nothing here can run the format {entry['format']}")
            task = Task(Path(entry["artifact"]), origin, Path(order["engine"]), eps, found)
            with given_by_recipe():
                write_answers(partial, run_artifact(task, questions))
            partial.rename(answers)
        except (WorkerError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            if is_disk_full(error):
                answers.with_suffix(".full").touch()
            answers.with_suffix(".error").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
