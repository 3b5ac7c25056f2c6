"""Task "ask": each artifact is run by its consumer, and what it answers is left for the task "smoke" to judge.

Inputs: in/questions (the reference's questions, and none of its answers), in/checkpoint with in/lora and in/state (see
origin) where a format is compared with them, in/engine, and the artifacts. Job parameters: format and input (the
artifact's name below in/). Parameters: lora_alpha, and speed, whether tokens are timed. Output "answers" of each job.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.protocol import emit, progress
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import AskParams, SmokeJobRequest, SmokeRequest

QUESTIONS = Path("in/questions")
CONSUMERS = "rwkvflow.worker.tasks.consume"  # the module that runs artifacts in a process of its own


def run(request: SmokeRequest) -> None:
    """See the module. An artifact's trouble is its own."""
    jobs = request["jobs"]
    Path("out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="out", prefix=".ask-") as folder:
        waiting = list(enumerate(jobs))
        while waiting:
            paths = {index: Path(folder) / f"{index}.npz" for index, _ in waiting}
            code = _child(Path(folder) / "order.json", [(job, paths[i]) for i, job in waiting], request["params"])
            while waiting:
                index, job = waiting.pop(0)
                name = job["params"]["format"]
                progress(index, len(jobs), "artifacts", name)
                answers, error = paths[index], paths[index].with_suffix(".error")
                if answers.exists():
                    output = Path(job["outputs"]["answers"])
                    output.parent.mkdir(parents=True, exist_ok=True)
                    answers.rename(output)
                    finish(job["id"], "answers", output)
                elif error.exists():
                    text = error.read_text(encoding="utf-8", errors="replace")
                    emit(failed={"job": job["id"], "message": text, "full": error.with_suffix(".full").exists()})
                else:  # it ended the process, so start another with the next
                    emit(failed={"job": job["id"], "message": _ending(name, code)})
                    break
    progress(len(jobs), len(jobs), "artifacts")


def _child(order: Path, entries: list[tuple[SmokeJobRequest, Path]], params: AskParams) -> int:
    content = {
        "questions": str(QUESTIONS),
        "checkpoint": "in/checkpoint",
        "lora_alpha": params.get("lora_alpha"),
        "ignore_tensors": params.get("ignore_tensors"),
        "engine": "in/engine",
        "speed": bool(params.get("speed")),
        "artifacts": [
            {
                "job": job["id"],
                "format": job["params"]["format"],
                "artifact": f"in/{job['params']['input']}",
                "answers": str(answers),
            }
            for job, answers in entries
        ],
    }
    order.write_text(json.dumps(content), encoding="utf-8")
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", CONSUMERS, str(order)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


def _ending(name: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"running {name} was killed: most likely it needed more memory than the step's limit"
    if code < 0:
        try:
            text = signal.Signals(-code).name
        except ValueError:
            text = f"signal {-code}"
        return f"running {name} crashed ({text})"
    return f"running {name} ended with exit code {code} and without a result; the log above says more"
