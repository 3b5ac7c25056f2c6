"""How an artifact is run: what a format's `run.py` is given, what it gives back, and what most of them need for it.

The runner of a format is the module that Format.runner names. Its function `run(task, questions)` runs one artifact
with the software that users run it with, and gives its answers; it raises WorkerError where the artifact does not hold
what the checkpoint holds, or its software refuses it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.scores import Scores

#: What a runner notes that computed in fp16 by itself, where the runtime cannot be run here.
IN_HALF = "the figures are of its operations in fp16, one by one, each rounded as it is stored"
HEAD_TOKENS = 128  # whose logits the forward pass computes at a time


@dataclass(frozen=True)
class Task:
    """One artifact to run.

    artifact        the file or folder
    checkpoint      what it was made of
    engine          folder with lib/librwkv.*, beside which other software stands that was built; or librwkv itself
    group_norm_eps  epsilon of the head group norm where the recipe gives one
    format          what the artifact is
    """

    artifact: Path
    checkpoint: Path | Origin
    engine: Path
    group_norm_eps: float | None
    format: Format

    def open_source(self) -> Checkpoint:
        """The checkpoint, without what the format has no place for. Raises WorkerError."""
        checkpoint = open_checkpoint(self.checkpoint)
        try:
            held = self.format.held(architecture_of(checkpoint.tensors), checkpoint.tensors)
            for name in [name for name in checkpoint.tensors if name not in held]:
                checkpoint.remove(name)
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint


def run_artifact(task: Task, questions: Questions) -> Answers:
    """The answers of an artifact, by the runner of its format. Raises WorkerError."""
    if not task.format.runner:
        raise WorkerError(f"nothing here can run the format {task.format.name}")
    run: Callable[[Task, Questions], Answers] = importlib.import_module(task.format.runner).run
    return run(task, questions)


def one_by_one(
    step: Callable[[int, Any], tuple[NDArray[np.float32], Any]], questions: Questions, threads: int | None
) -> Answers:
    """Answers of a model that takes a token and a state (None: fresh) and returns logits [V] and the next state.

    `threads` is how many it works with, for the report; None where nobody knows.
    """
    scores = Scores(questions)
    state = None
    for at, token in enumerate(questions.text):
        start = time.perf_counter()
        logits, state = step(token, state)
        if questions.speed:
            scores.took(time.perf_counter() - start)
        scores.take(logits[None])
        if not at % 64:
            progress(at, len(questions.text), "tokens")
    return scores.answers(continued(step, questions), threads=threads, runtime=True)


def continued(
    step: Callable[[int, Any], tuple[NDArray[np.float32], Any]], questions: Questions
) -> tuple[tuple[int, ...], ...]:
    """The greedy continuations of such a model."""
    continuations = []
    for prompt in questions.prompts:
        state, out = None, []
        for token in prompt:
            logits, state = step(token, state)
        for left in reversed(range(questions.tokens)):
            out.append(questions.likeliest(logits))
            if left:
                logits, state = step(out[-1], state)
        continuations.append(tuple(out))
    return tuple(continuations)


def threads_for(size: int) -> int:
    """One thread for every 32 MiB of weights: for less the threads wait for each other longer than they work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, size >> 25))


def answer(reference: Reference, questions: Questions) -> Answers:
    """The answers of the forward pass."""
    with np.errstate(over="ignore", invalid="ignore") if reference.in_half else nullcontext():  # the judge tells
        hidden = reference.hidden([reference.start()], [questions.text])[0]
        scores = Scores(questions)
        for start in range(0, len(hidden), HEAD_TOKENS):
            scores.take(reference.logits(hidden[start : start + HEAD_TOKENS]))
        continuations = tuple(tuple(row) for row in reference.greedy(questions))
    return scores.answers(continuations, threads=None, runtime=False)
