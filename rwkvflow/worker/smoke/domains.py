"""How a model differs from another over texts of several domains, and what it gets right of small tasks.

The texts and tasks ship, in data/quality/, where scripts/domains.py made them. All that is needed of a model is that it
reads sequences of tokens (engine.binding.Model does). Two are read at the same time, a few tokens each, so that no
logits are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tokenizers import ModelTokenizer
from rwkvflow.worker.smoke.questions import Array
from rwkvflow.worker.smoke.scores import divergence_of, losses_of, softmax_of

FOLDER = Path(__file__).resolve().parents[1] / "data" / "quality"
SEARCH = FOLDER.with_name("search")  # other texts of the same domains: what is judged by is not what is chosen by
WINDOW = 64  # tokens whose logits are held
BLOCK = 128  # tokens that follow one another, whose mean is taken as one observation: neighbours are not independent
TOGETHER = 8  # sequences of a task that are read at once

Doubles = NDArray[np.float64]


class Reader(Protocol):
    """A model: the next tokens of several sequences, as engine.binding.Model has it."""

    @property
    def state_len(self) -> int:
        """Values of a state."""

    def eval_sequences(
        self,
        sequences: Sequence[Sequence[int]],
        states: Sequence[Any],
        out: Sequence[Any],
        wanted: Sequence[int],
    ) -> tuple[Array, Array]:
        """Logits after the tokens of `wanted`, and what is not asked for."""


@dataclass(frozen=True)
class Compared:
    """A model against a reference, token by token of a text of T tokens.

    losses, expected   [T-1] in nats, of this and of the reference
    divergence, agrees [T] KL(reference || this) in nats; 1 where both hold the same token the likeliest
    """

    losses: Doubles
    expected: Doubles
    divergence: Doubles
    agrees: Doubles


def compare_on(
    tokens: Sequence[int], reference: Reader, others: Sequence[Reader], on_tokens: Callable[[int], None] | None = None
) -> list[Compared]:
    """Each of the others against the reference over a text of at least two tokens. Raises WorkerError for NaN."""
    text = np.asarray(tokens)
    kept: list[list[list[Doubles]]] = [[[], [], [], []] for _ in others]
    states: list[NDArray[np.float32] | None] = [None] * (1 + len(others))
    for start in range(0, len(text), WINDOW):
        part = tokens[start : start + WINDOW]
        targets = text[start + 1 : start + len(part) + 1]
        truth = softmax_of(_window(reference, part, states, 0))
        likeliest = truth.logits.argmax(1)
        for index, other in enumerate(others):
            with np.errstate(all="ignore"):
                found = softmax_of(_window(other, part, states, 1 + index))
                rows = (
                    losses_of(found, targets),
                    losses_of(truth, targets),
                    divergence_of(truth, found),
                    (found.logits.argmax(1) == likeliest).astype(np.float64),
                )
            if not np.isfinite(rows[2]).all():
                raise WorkerError(f"its logits are NaN or infinite after {start + len(part)} tokens")
            for column, values in zip(kept[index], rows, strict=True):
                column.append(values)
        if on_tokens is not None:
            on_tokens(start + len(part))
    return [Compared(*(np.concatenate(column) for column in columns)) for columns in kept]


def _window(model: Reader, part: Sequence[int], states: list[NDArray[np.float32] | None], at: int) -> Array:
    after = np.empty(model.state_len, np.float32)
    logits, _ = model.eval_sequences([part], [states[at]], [*[None] * (len(part) - 1), after], range(len(part)))
    states[at] = after
    return logits


def standard_error(values: Doubles) -> float | None:
    """Of the mean of values that follow one another: from the means of blocks; None for fewer than two blocks."""
    blocks = len(values) // BLOCK
    if blocks < 2:
        return None
    means = values[: blocks * BLOCK].reshape(blocks, BLOCK).mean(1)
    return float(means.std(ddof=1) / np.sqrt(blocks))


def figures(found: Compared) -> dict[str, Any]:
    """What a report says of a domain. Rounded so that the order of a machine's additions does not show.

    rise: of the perplexity, as a ratio; its error is that of the difference of both, token by token.
    """
    more = found.losses - found.expected
    ratio = float(np.exp(more.mean()))
    return {
        "tokens": len(found.divergence),
        "perplexity": _digits(float(np.exp(found.losses.mean()))),
        "perplexity_se": _scaled(standard_error(found.losses), float(np.exp(found.losses.mean()))),
        "reference_perplexity": _digits(float(np.exp(found.expected.mean()))),
        "rise": round(ratio - 1, 5) + 0.0,
        "rise_se": _scaled(standard_error(more), ratio),
        "kl": _digits(float(found.divergence.mean())),
        "kl_se": _scaled(standard_error(found.divergence), 1.0),
        "kl_p99": _digits(float(np.quantile(found.divergence, 0.99))),
        "kl_max": _digits(float(found.divergence.max())),
        "agreement": round(float(found.agrees.mean()), 4),
        "agreement_se": _scaled(standard_error(found.agrees), 1.0),
    }


def _digits(value: float) -> float:
    """Four digits, and no more than seven after the point."""
    return float(f"{round(value, 7):.4g}") + 0.0


def _scaled(error: float | None, factor: float) -> float | None:
    return None if error is None else float(f"{round(error * factor, 7):.2g}") + 0.0


def over(domain: str, found: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """What is over the recipe's limits of a domain, in words."""
    told = []
    for key, words, high in (("perplexity", "rise", True), ("kl", "kl", True), ("agreement", "agreement", False)):
        limit, value = limits.get(key), found[words]
        if limit is not None and (value > limit if high else value < limit):
            told.append(f"{domain}: {key} {value:g} is {'over' if high else 'under'} the recipe's {limit:g}")
    return told


# ---- tasks -------------------------------------------------------------------------------------------------------


def answer_tasks(model: Reader, words: ModelTokenizer, most: int | None = None) -> dict[str, Any]:
    """Shares of right answers: last words by choice and in the model's own words, and sums to their last digit.

    In its own words: every token is the likeliest, and what it would go on with does not make another word, or another
    number, of the answer.
    """
    tasks = json.loads((FOLDER / "tasks.json").read_text(encoding="utf-8"))
    choices, sums = tasks["last_words"][:most], tasks["sums"][:most]
    right = said = 0
    ends = [[item["answer"], *item["others"]] for item in choices]
    pairs = [(item["text"], end) for item, some in zip(choices, ends, strict=True) for end in some]
    scores = iter(_continuations(model, words, pairs))
    for some in ends:
        told = [next(scores) for _ in some]
        losses = [float(each.sum()) for each, _, _ in told]
        right += all(losses[0] < other for other in losses[1:])
        said += _said(told[0], words, str.isalnum)
    sums_right = sum(
        _said(told, words, str.isdigit)
        for told in _continuations(model, words, [(item["text"], item["answer"]) for item in sums])
    )
    return {
        "last_words": _share(right, len(choices)),
        "last_words_exact": _share(said, len(choices)),
        "sums": _share(sums_right, len(sums)),
    }


def _said(told: tuple[Doubles, NDArray[np.bool_], int], words: ModelTokenizer, goes_on: Callable[[str], bool]) -> bool:
    """Whether a greedy model gives an answer, and ends it: the next character does not `goes_on`."""
    _, hits, last = told
    return bool(hits.all()) and not goes_on(words.decode([last])[:1])


def _continuations(
    model: Reader, words: ModelTokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[Doubles, NDArray[np.bool_], int]]:
    """For each (text, what follows): its losses, where it is the likeliest, and the likeliest token behind it."""
    out = []
    for start in range(0, len(pairs), TOGETHER):
        some = [(words.encode(text), words.encode(end)) for text, end in pairs[start : start + TOGETHER]]
        wanted: list[int] = []
        at = 0
        for text, end in some:
            wanted += range(at + len(text) - 1, at + len(text) + len(end))
            at += len(text) + len(end)
        sequences = [[*text, *end] for text, end in some]
        logits, _ = model.eval_sequences(sequences, [None] * len(some), [None] * at, wanted)
        row = 0
        for _, end in some:
            mine = logits[row : row + len(end) + 1]
            row += len(end) + 1
            likeliest = mine.argmax(1)
            out.append((losses_of(softmax_of(mine[:-1]), np.asarray(end)), likeliest[:-1] == end, int(likeliest[-1])))
    return out


def _share(right: int, count: int) -> dict[str, Any]:
    share = right / max(count, 1)
    return {"items": count, "right": round(share, 4), "se": round(float(np.sqrt(share * (1 - share) / count)), 4)}
