"""`ggml-*`: run by librwkv, through its C API."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import Task, continued, one_by_one, threads_for
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.scores import Scores
from rwkvflow.worker.write.native import find_library

CHUNK = 64  # tokens of the text at a time, whose logits are held
BOTH = 8  # tokens that are read in both ways, which must agree bit for bit


def run(task: Task, questions: Questions) -> Answers:
    """The engine library's answers. Raises WorkerError when it refuses the file."""
    threads = threads_for(task.artifact.stat().st_size)
    try:
        with Model(
            task.artifact,
            library=find_library(task.engine),
            threads=threads,
            group_norm_eps=task.group_norm_eps,
        ) as model:

            def step(token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
                logits, state = model.eval(token, state)
                return np.asarray(logits, np.float32), state

            if questions.speed or not model.library.takes_sequences:
                return one_by_one(step, questions, threads)
            scores = Scores(questions)
            read_together(model, questions, scores)
            return scores.answers(continued(step, questions), threads=threads, runtime=True)
    except EngineError as error:
        raise WorkerError(f"the engine refused it: {error}") from None


def read_together(model: Model, questions: Questions, scores: Scores) -> None:
    """Reads the text many tokens at a time, which gives the bits that one at a time does, in a fraction of the time.

    Raises WorkerError where the first tokens show that it does not, EngineError as the model does.
    """
    text, alone = questions.text, []
    state: NDArray[np.float32] | None = None
    for token in text[:BOTH]:
        logits, state = model.eval(token, state)
        alone.append(logits)
    state = None
    for start in range(0, len(text), CHUNK):
        tokens = text[start : start + CHUNK]
        after = np.empty(model.state_len, np.float32)
        out = [*[None] * (len(tokens) - 1), after]
        logits, _ = model.eval_sequences([tokens], [state], out, range(len(tokens)))
        if not start and not np.array_equal(logits[: len(alone)], np.stack(alone), equal_nan=True):
            raise WorkerError("the engine's logits of several tokens together are not those of one at a time")
        scores.take(logits)
        state = after
        progress(start + len(tokens), len(text), "tokens")
