"""The best types for the matrices of a model: each gets one, their losses add up, and so do their bytes.

That losses add up is an assumption (each was measured with all the others in F32), which the file's own quality shows
to hold or not. The problem is then a knapsack with one choice of each class. It is solved over the sums that are best
for their bytes, thinned out where they grow too many, and held against the bound of its linear relaxation: the lower
convex hull of each matrix's choices, steepest steps first, the last one in part (Sinha and Zoltners, 1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 4000  # sums that are kept from matrix to matrix


@dataclass(frozen=True)
class TypeChoice:
    """A type that a matrix may have: bytes that it takes, and nats a token that it loses."""

    kind: str
    size: int
    loss: float


@dataclass(frozen=True)
class Assignment:
    """A type for each matrix. `bound`: no assignment within the limit is better than that.

    Of a limit on the size it is one of the loss, of a limit on the loss one of the size.
    """

    kinds: Mapping[str, str]
    size: int
    loss: float
    bound: float


def within_size(choices: Mapping[str, Sequence[TypeChoice]], most: int) -> Assignment | None:
    """The least loss in at most so many bytes; None where even the smallest choices take more."""
    best = None
    for size, loss, picked in _fronts(choices):
        if size <= most and (best is None or loss < best[1]):
            best = (size, loss, picked)
    if best is None:
        return None
    return Assignment(_kinds(choices, best[2]), best[0], best[1], _least_loss(choices, most))


def within_loss(choices: Mapping[str, Sequence[TypeChoice]], most: float) -> Assignment | None:
    """The fewest bytes that lose at most so much; None where even the best choices lose more."""
    best = None
    for size, loss, picked in _fronts(choices):
        if loss <= most and (best is None or size < best[0]):
            best = (size, loss, picked)
    if best is None:
        return None
    return Assignment(_kinds(choices, best[2]), best[0], best[1], _least_size(choices, most))


# ---- sums that are best for their bytes --------------------------------------------------------------------------

Sum = tuple[int, float, Any]  # bytes, loss, and the choice of each matrix so far: (those before, the last one)


def _fronts(choices: Mapping[str, Sequence[TypeChoice]]) -> list[Sum]:
    """By size, each losing less than the one before. Ends that no thinning may drop are kept."""
    front: list[Sum] = [(0, 0.0, ())]
    for some in choices.values():
        sums = [
            (size + choice.size, loss + choice.loss, (picked, index))
            for size, loss, picked in front
            for index, choice in enumerate(some)
        ]
        sums.sort(key=lambda item: item[:2])
        front = []
        for item in sums:
            if not front or item[1] < front[-1][1]:
                front.append(item)
        front = _thinned(front)
    return front


def _thinned(front: list[Sum]) -> list[Sum]:
    """At most MOST: of those in one stretch of bytes the best one, which is the largest; and the smallest of all."""
    if len(front) <= MOST:
        return front
    low, span = front[0][0], front[-1][0] - front[0][0] + 1
    kept: dict[int, Sum] = {(item[0] - low) * MOST // span: item for item in front}
    return [front[0], *(item for item in kept.values() if item is not front[0])]


def _kinds(choices: Mapping[str, Sequence[TypeChoice]], picked: Any) -> dict[str, str]:
    found: list[str] = []
    for some in reversed(list(choices.values())):
        picked, index = picked
        found.append(some[index].kind)
    return dict(zip(choices, reversed(found), strict=True))


# ---- the linear relaxation ---------------------------------------------------------------------------------------


def _hull(some: Sequence[TypeChoice]) -> list[TypeChoice]:
    """The lower convex hull of a matrix's choices, the smallest first."""
    hull: list[TypeChoice] = []
    for choice in sorted(some, key=lambda item: (item.size, item.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        if hull and choice.size == hull[-1].size:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(one: TypeChoice, other: TypeChoice) -> float:
    """Loss for each byte from one to the other, below 0."""
    return (other.loss - one.loss) / (other.size - one.size)


def _steps(choices: Mapping[str, Sequence[TypeChoice]]) -> tuple[int, float, list[tuple[int, float]]]:
    """Bytes and loss of the smallest choices, and steps (bytes, loss below 0) that improve on them, steepest first."""
    hulls = [_hull(some) for some in choices.values()]
    steps = [(step.size, step.gain) for step in _steepest(dict(zip(choices, hulls, strict=True)))]
    return sum(hull[0].size for hull in hulls), math.fsum(hull[0].loss for hull in hulls), steps


@dataclass(frozen=True)
class _Step:
    """From one choice of a matrix to the next of its hull: more bytes, and loss below 0."""

    name: str
    to: str
    size: int
    gain: float


def _steepest(hulls: Mapping[str, Sequence[TypeChoice]]) -> list[_Step]:
    steps = [
        _Step(name, after.kind, after.size - before.size, after.loss - before.loss)
        for name, hull in hulls.items()
        for before, after in itertools.pairwise(hull)
    ]
    return sorted(steps, key=lambda step: step.gain / step.size)


def relaxed(choices: Mapping[str, Sequence[TypeChoice]], most: int) -> list[tuple[str, str, float]]:
    """(matrix, type, share) of the linear relaxation's solution in so many bytes; one matrix may have two types."""
    hulls = {name: _hull(some) for name, some in choices.items()}
    kinds = {name: hull[0].kind for name, hull in hulls.items()}
    size = sum(hull[0].size for hull in hulls.values())
    for step in _steepest(hulls):
        if size + step.size > most:
            share = max(0.0, (most - size) / step.size)
            found = [(name, kind, 1 - share if name == step.name else 1.0) for name, kind in kinds.items()]
            return [*found, (step.name, step.to, share)]
        size += step.size
        kinds[step.name] = step.to
    return [(name, kind, 1.0) for name, kind in kinds.items()]


def _least_loss(choices: Mapping[str, Sequence[TypeChoice]], most: int) -> float:
    size, loss, steps = _steps(choices)
    for more, gain in steps:
        if size + more > most:
            return loss + gain * (most - size) / more
        size, loss = size + more, loss + gain
    return loss


def _least_size(choices: Mapping[str, Sequence[TypeChoice]], most: float) -> float:
    size, loss, steps = _steps(choices)
    for more, gain in steps:
        if loss <= most:
            return float(size)
        if loss + gain <= most:
            return size + more * (loss - most) / -gain
        size, loss = size + more, loss + gain
    return float(size)
