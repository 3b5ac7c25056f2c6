"""A model of a few lines in place of librwkv: quick, and each sequence's outcome follows from its own tokens alone."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
STATES = 211  # so few that texts repeat themselves
VOCABULARY = 256


@functools.cache
def logits_of(state: int, skew: int) -> Floats:
    """[VOCABULARY]; letters are likely, and token 0, which ends a text, is seldom."""
    values = np.random.default_rng(state).normal(0, 1, VOCABULARY).astype(np.float32)
    values[97:123] += 3
    values += skew * np.random.default_rng(10**6 + state).normal(0, 0.3, VOCABULARY).astype(np.float32)
    return values


class ToyModel:
    """As much of rwkvflow.engine.Model as a scheduler calls. `skew`: how far it is from the model with 0."""

    n_vocab = logits_len = VOCABULARY
    n_embd = 2
    state_len = 2

    def __init__(self, skew: int = 0, name: str = "toy.bin") -> None:
        self.path = Path(name)
        self.library = SimpleNamespace(takes_sequences=True, chooses=False, path=Path("toy.so"))
        self.skew, self.closed = skew, False
        self.passes: list[list[int]] = []  # the lengths of each pass
        self.gate = threading.Event()  # a pass waits for it
        self.gate.set()
        self.poisoned: int | None = None  # a token whose logits are not finite

    def close(self) -> None:
        self.closed = True

    def _step(self, state: Floats | None, token: int) -> Floats:
        count, value = (0, 1) if state is None else (int(state[0]), int(state[1]))
        return np.array([count + 1, (value * 31 + token + 7) % STATES], np.float32)

    def _logits(self, state: Floats, token: int) -> Floats:
        if token == self.poisoned:
            return np.full(VOCABULARY, np.nan, np.float32)
        return logits_of(int(state[1]), self.skew)

    def eval_sequences(
        self,
        sequences: Sequence[Sequence[int]],
        states: Sequence[Floats | None],
        out: Sequence[Floats | None],
        wanted: Sequence[int],
        hidden: Sequence[int] = (),
    ) -> tuple[Floats, Floats]:
        assert self.gate.wait(20)
        if len(self.passes) < 10_000:
            self.passes.append([len(tokens) for tokens in sequences])
        given = [None if state is None else state.copy() for state in states]
        after: list[tuple[Floats, int]] = []
        for tokens, state in zip(sequences, given, strict=True):
            assert tokens
            for token in tokens:
                state = self._step(state, token)
                after.append((state, token))
        for place, (state, _) in zip(out, after, strict=True):
            if place is not None:
                place[:] = state
        logits = [self._logits(*after[i]) for i in wanted]
        return (
            np.array(logits, np.float32).reshape(-1, VOCABULARY),
            np.array([after[i][0] for i in hidden], np.float32).reshape(-1, 2),
        )

    def eval_batch(self, tokens: Any, states: Any, out: Any) -> tuple[Floats, Any]:
        logits, _ = self.eval_sequences([[token] for token in tokens], states, out, list(range(len(tokens))))
        return logits, out
