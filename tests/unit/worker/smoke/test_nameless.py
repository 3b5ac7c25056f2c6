"""An id that the tokenizer has no token for is in no continuation, whoever computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.formats.gguf import llama
from rwkvflow.worker.formats.runner import answer, continued
from rwkvflow.worker.model.tokenizers import Bytes, ModelTokenizer, PseudoRandom, World, world_vocabulary
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.requests import AskParams
from rwkvflow.worker.smoke.questions import (
    Questions,
    SmokeReference,
    read_questions,
    read_reference,
    write_questions,
    write_reference,
)
from rwkvflow.worker.tasks import reference
from tests.helpers import checkpoints

VOCAB = 64
ASKED = Questions((1, 2, 3), 3, ((1, 2), (3,)), 5)
PARAMS: AskParams = {"tokenizer": "auto", "group_norm_eps": None, "prompts": ["a"], "tokens": 2}


def barring(first: int) -> Questions:
    return Questions(ASKED.text, ASKED.logits, ASKED.prompts, ASKED.tokens, nameless=tuple(range(first, VOCAB)))


class Stubborn:
    """A model that prefers the highest id."""

    def reset(self) -> None:
        """Nothing is kept."""

    def eval(self, tokens: Any) -> Any:
        return np.tile(np.arange(VOCAB, dtype=np.float32), (len(tokens), 1))


def test_whoever_continues_leaves_them_out(tmp_path: Path) -> None:
    model, asked = Stubborn(), barring(60)
    assert continued(lambda token, state: (model.eval([token])[0], None), asked) == ((59,) * 5,) * 2
    assert llama._continue(model, (1, 2), asked) == (59,) * 5  # type: ignore[arg-type]
    assert llama._continue(model, (1, 2), ASKED) == (VOCAB - 1,) * 5  # type: ignore[arg-type]
    with open_checkpoint(checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=VOCAB)) as checkpoint:
        free = answer(Reference(checkpoint), ASKED)
        chosen = max(token for row in free.continuations for token in row)
        bound = answer(Reference(checkpoint), barring(chosen))
    assert all(token < chosen for row in bound.continuations for token in row)
    assert bound.continuations != free.continuations
    reached = SmokeReference(barring(chosen), bound, None, "auto", None)
    write_questions(tmp_path / "questions", reached)
    assert read_questions(tmp_path / "questions", speed=False)[0].nameless == tuple(range(chosen, VOCAB))
    write_reference(tmp_path / "reference.npz", reached)
    assert read_reference(tmp_path / "reference.npz").questions.nameless == tuple(range(chosen, VOCAB))


def test_what_is_asked_bars_all_that_have_no_token() -> None:
    kinds: list[tuple[ModelTokenizer, int, set[int]]] = [
        (Bytes(), 320, set(range(256, 320))),
        (PseudoRandom(64, ""), 64, set()),
    ]
    if vocabulary := world_vocabulary():
        kinds.append((World(vocabulary), 65536, set(range(65530, 65536))))  # 0 ends a text
    for tokenizer, n_vocab, nameless in kinds:
        assert set(reference.ask(PARAMS, "some text, and more", tokenizer, n_vocab).nameless) == nameless


@pytest.mark.parametrize("token", [59, 60, 63])
def test_none_is_chosen_among_equals(token: int) -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[token] = 1.0
    assert barring(60).likeliest(logits) == (token if token < 60 else 0)
    assert logits[token] == 1.0  # the caller's stay
