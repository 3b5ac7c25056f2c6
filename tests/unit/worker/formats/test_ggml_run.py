"""`ggml-*` in smoke: many tokens at a time, which must be what one at a time is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.ggml import run
from rwkvflow.worker.smoke.questions import Questions
from rwkvflow.worker.smoke.scores import Scores

VOCAB = 7
QUESTIONS = Questions(tuple(number % VOCAB for number in range(150)), 64, ((1,),), 2)


class Sums:
    """A model whose state is the sum of its tokens; together, it is `off` from what it is one by one."""

    state_len = 1

    def __init__(self, off: float = 0.0, where: int = 0) -> None:
        self.off, self.where = off, where
        self.calls: list[int] = []

    def eval(self, token: int, state: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        after: np.ndarray[Any, Any] = np.array([token], np.float32) + (0 if state is None else state)
        return after * np.arange(VOCAB, dtype=np.float32) / np.float32(100), after

    def eval_sequences(
        self, sequences: Sequence[Sequence[int]], states: Any, out: Any, wanted: Sequence[int]
    ) -> tuple[np.ndarray[Any, Any], None]:
        ((tokens,), (state,)) = sequences, states
        self.calls.append(len(tokens))
        rows = []
        for token in tokens:
            logits, state = self.eval(token, state)
            rows.append(logits)
        out[-1][:] = state
        found = np.stack(rows)[list(wanted)]
        found[self.where] += np.float32(self.off)
        return found, None


def test_the_whole_text_is_read_and_the_state_carried() -> None:
    model, together, alone = Sums(), Scores(QUESTIONS), Scores(QUESTIONS)
    run.read_together(model, QUESTIONS, together)  # type: ignore[arg-type]
    state = None
    for token in QUESTIONS.text:
        logits, state = model.eval(token, state)
        alone.take(logits[None])
    assert model.calls == [64, 64, 22]
    found, expected = (scores.answers((), threads=1, runtime=True) for scores in (together, alone))
    for name in ("logits", "losses", "likeliest"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("where", range(run.BOTH))
def test_an_engine_that_reads_otherwise_together_than_alone_is_found(where: int) -> None:
    with pytest.raises(WorkerError, match="several tokens together"):
        run.read_together(Sums(1e-6, where), QUESTIONS, Scores(QUESTIONS))  # type: ignore[arg-type]
