"""The best types for the matrices of a model where what each loses was measured over several texts, of several kinds.

What counts is how much a text loses against what it loses in the plain file (its usual loss): the choice is the one
whose worst text is the best of all. Sums over all tokens would be blind to a text that loses little in any file, such
as one in a language whose words the model hardly doubts, and pay for the others with it.

The least of the largest of several sums is no knapsack, but for the right weights of the texts a knapsack's solution is
near it. They are searched for on the linear relaxation, which takes no time: a text that is over the mean gets more
weight, by steps that become smaller. The knapsack is then solved for the mean of all weights that were passed, and for
equal ones, and the better is taken. Only sums, products and quotients of doubles in a fixed order decide, so every
machine chooses alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvflow.worker.conversion.assign import Assignment, TypeChoice, relaxed, within_size

ROUNDS = 200


@dataclass(frozen=True)
class MeasuredType:
    """A type that a matrix may have: bytes that it takes, and nats a token that it loses, of each text."""

    kind: str
    size: int
    losses: tuple[float, ...]


Measured = Mapping[str, Sequence[MeasuredType]]


@dataclass(frozen=True)
class Balanced:
    """A type for each matrix.

    losses  nats a token, of each text
    worst   the largest share of a usual loss
    bound   no choice within the size has a smaller one: the weights are of a mean of shares, and no mean is larger than
            the largest
    """

    kinds: Mapping[str, str]
    losses: tuple[float, ...]
    worst: float
    bound: float


def shares(losses: Sequence[float], usual: Sequence[float]) -> list[float]:
    """Losses against usual ones; of texts that lose nothing there is none."""
    return [loss / most for loss, most in zip(losses, usual, strict=True) if most > 0]


def losses_of(measured: Measured, kinds: Mapping[str, str]) -> tuple[float, ...]:
    """What the types lose together, of each text."""
    chosen = [next(item for item in some if item.kind == kinds[name]).losses for name, some in measured.items()]
    return tuple(math.fsum(column) for column in zip(*chosen, strict=True))


def balanced(measured: Measured, most: int, usual: Sequence[float]) -> Balanced | None:
    """The least loss of the worst text in at most so many bytes; None where even the smallest choices take more."""
    count = sum(loss > 0 for loss in usual)
    even = tuple(1 / (loss * count) if loss > 0 else 0.0 for loss in usual)
    tried: list[Assignment] = []
    for weights in dict.fromkeys((even, _weights(measured, most, usual, even))):
        chosen = within_size(weighed(measured, weights), most)
        if chosen is None:
            return None
        tried.append(chosen)
    found = []
    for chosen in tried:
        losses = losses_of(measured, chosen.kinds)
        found.append((max(shares(losses, usual), default=0.0), math.fsum(losses), losses, chosen))
    worst, _, losses, best = min(found, key=lambda one: one[:2])
    return Balanced(best.kinds, losses, worst, max(chosen.bound for chosen in tried))


def weighed(measured: Measured, weights: Sequence[float]) -> dict[str, list[TypeChoice]]:
    """Choices with one loss each."""
    return {
        name: [
            TypeChoice(item.kind, item.size, math.fsum(w * loss for w, loss in zip(weights, item.losses, strict=True)))
            for item in some
        ]
        for name, some in measured.items()
    }


def _weights(measured: Measured, most: int, usual: Sequence[float], even: tuple[float, ...]) -> tuple[float, ...]:
    """Weights for which the relaxation's texts lose alike, as far as there are any."""
    part = [1.0 if loss > 0 else 0.0 for loss in usual]
    if not any(part):
        return even
    total = [0.0] * len(part)
    by_kind = {(name, item.kind): item.losses for name, some in measured.items() for item in some}
    for turn in range(ROUNDS):
        choices = weighed(measured, [w * p for w, p in zip(even, part, strict=True)])
        sums: list[list[float]] = [[] for _ in part]
        for name, kind, share in relaxed(choices, most):
            for column, loss in zip(sums, by_kind[name, kind], strict=True):
                column.append(share * loss)
        told = [math.fsum(column) / loss if loss > 0 else 0.0 for column, loss in zip(sums, usual, strict=True)]
        mean = math.fsum(p * t for p, t in zip(part, told, strict=True)) / math.fsum(part)
        total = [t + p for t, p in zip(total, part, strict=True)]
        if mean <= 0:
            break
        step = 1 / (1 + turn / 8)
        part = [p * max(0.1, 1 + step * (t / mean - 1)) for p, t in zip(part, told, strict=True)]
        scale = math.fsum(loss > 0 for loss in usual) / math.fsum(part)
        part = [p * scale for p in part]
    scale = sum(loss > 0 for loss in usual) / math.fsum(total)
    return tuple(w * t * scale for w, t in zip(even, total, strict=True))
