"""Random checkpoints, what formats make of them, and what consumers answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import Task, answer, run_artifact
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.questions import Answers, Questions
from tests.helpers import checkpoints

QUESTIONS = Questions(tuple(int(x) for x in np.random.default_rng(3).integers(1, 90, 20)), 12, ((3, 4), (7,)), 4)


def make(
    folder: Path, version: str, dtype: str, engine: Path, *names: str, eps: float | None = None, **sizes: int
) -> tuple[Path, list[Path]]:
    """A checkpoint and its artifacts in the formats `names`; eps: of its head group norm."""
    folder.mkdir(exist_ok=True)
    source = checkpoints.make(folder / "m.pth", version, dtype, **({"layers": 2, "width": 128, "vocab": 96} | sizes))
    outcomes = convert(source, engine, [ConversionJob(name, name, folder / name) for name in names], group_norm_eps=eps)
    assert [outcome.failure for outcome in outcomes] == [None] * len(names)
    return source, [folder / name for name in names]


def expected(source: Path, eps: float | None = None) -> Answers:
    """The reference's answers."""
    with open_checkpoint(source) as checkpoint:
        return answer(Reference(checkpoint, eps), QUESTIONS)


def ask(name: str, path: Path, source: Path, eps: float | None = None, truth: Answers | None = None) -> Answers:
    """The consumer's answers, with its speed and how far it is from the logits of `truth`."""
    asked = replace(QUESTIONS, truth=None if truth is None else truth.logits, speed=True)
    return run_artifact(Task(path, source, source.parent, eps, FORMATS[name]), asked)
