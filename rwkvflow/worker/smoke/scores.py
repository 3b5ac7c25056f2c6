"""What is kept of the logits over the smoke text: a few rows whole, and of the others only figures.

A vocabulary of 65,536 makes 256 KiB of every row, so rows are compared with the reference's as they come, and the
reference's own are read from a memory map.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.smoke.questions import Answers, Array, DecodePace, Questions

ROWS = 16  # of logits in float64 at a time
WARM_UP = 8  # tokens: pages come in, threads start, clocks rise


@dataclass(frozen=True)
class Softmax:
    """Rows of logits [k, V] in float64, and the logarithm of the sum of their exponentials [k, 1]."""

    logits: NDArray[np.float64]
    total: NDArray[np.float64]


class Scores:
    """Takes the logits after each token of the text, in order."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._text = np.asarray(questions.text)
        self._read = 0
        self._kept: Array | None = None
        self._losses: list[NDArray[np.float64]] = []
        self._likeliest: list[NDArray[np.int64]] = []
        self._divergence: list[NDArray[np.float64]] = []
        self._seconds: list[float] = []

    def take(self, logits: Array) -> None:
        """The next rows, [k, V]. NaN and infinity are kept for smoke to find."""
        with np.errstate(all="ignore"):
            for start in range(0, len(logits), ROWS):
                self._take(logits[start : start + ROWS])

    def took(self, seconds: float) -> None:
        """How long one token took."""
        self._seconds.append(seconds)

    def answers(self, continuations: tuple[tuple[int, ...], ...], *, threads: int | None, runtime: bool) -> Answers:
        """All that was kept. `threads` of whatever computed it, None where that is not known."""
        pace = None
        if seconds := self._seconds[WARM_UP:]:
            pace = DecodePace(1 / statistics.median(seconds), len(seconds), threads)
        return Answers(
            np.empty((0, 0), np.float32) if self._kept is None else self._kept[: self._read],
            np.concatenate([np.empty(0), *self._losses]).astype(np.float32),
            np.concatenate([np.empty(0, np.int64), *self._likeliest]).astype(np.int32),
            continuations,
            divergence=np.concatenate(self._divergence) if self._divergence else None,
            runtime=runtime,
            pace=pace,
        )

    def _keep(self, at: int, rows: Array) -> None:
        if self._kept is None:  # at once: rows can be hundreds of megabytes
            self._kept = np.empty((min(self._questions.logits, len(self._text)), rows.shape[1]), np.float32)
        self._kept[at : at + len(rows)] = rows[: len(self._kept) - at]

    def _take(self, logits: Array) -> None:
        at, count = self._read, len(logits)
        self._read += count
        if at < self._questions.logits:
            self._keep(at, logits[: self._questions.logits - at])
        if self._questions.deferred:
            logits = logits[max(0, self._questions.logits - at) :]
            at, count = self._read - len(logits), len(logits)
            if not count:
                return
        self._likeliest.append(logits.argmax(1))
        found = softmax_of(logits)
        targets = self._text[at + 1 : at + count + 1]
        self._losses.append(losses_of(found, targets))
        truth = self._questions.truth
        if truth is not None and at < len(truth) and truth.shape[1] == logits.shape[1]:
            rows = truth[at : at + count]
            self._divergence.append(divergence_of(softmax_of(rows), found))


def softmax_of(logits: Array) -> Softmax:
    """Of rows of logits."""
    wide = logits.astype(np.float64)
    top = wide.max(1, keepdims=True)
    return Softmax(wide, np.log(np.exp(wide - top).sum(1, keepdims=True)) + top)


def losses_of(of: Softmax, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p of the targets; the last row may have none."""
    rows = np.arange(len(targets))
    found: NDArray[np.float64] = of.total[rows, 0] - of.logits[rows, targets]
    return found


def divergence_of(p: Softmax, q: Softmax) -> NDArray[np.float64]:
    """sum p (log p - log q), never below 0; q may have more rows."""
    logits, total = q.logits[: len(p.logits)], q.total[: len(p.logits), 0]
    weighted = np.exp(p.logits - p.total) * (p.logits - logits)
    found: NDArray[np.float64] = np.maximum(weighted.sum(1) - p.total[:, 0] + total, 0.0)
    return found
