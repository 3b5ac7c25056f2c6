"""`ggml-*`: run by librwkv, through its C API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import Task, one_by_one, threads_for
from rwkvflow.worker.smoke.questions import Answers, Questions


def run(task: Task, questions: Questions) -> Answers:
    """The engine library's answers. Raises WorkerError when it refuses the file."""
    threads = threads_for(task.artifact.stat().st_size)
    try:
        with Model(
            task.artifact,
            library=_library(task.engine),
            threads=threads,
            group_norm_eps=task.group_norm_eps,
        ) as model:

            def step(token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
                logits, state = model.eval(token, state)
                return np.asarray(logits, np.float32), state

            return one_by_one(step, questions, threads)
    except EngineError as error:
        raise WorkerError(f"the engine refused it: {error}") from None


def _library(engine: Path) -> Path:
    found = sorted(path for path in (engine / "lib").glob("librwkv.*") if path.suffix in (".so", ".dylib"))
    if not found:
        raise WorkerError("the engine has no lib/librwkv.so: its build step kept no library")
    return found[0]
