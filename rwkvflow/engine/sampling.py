"""How the next token is chosen: the same logits, settings and seed choose the same tokens on every machine.

rwkvflow.h describes a choice, step by step. librwkv makes it (rwkvflow.engine.choosing); this is the same in Python,
bit for bit: for libraries of others, and to hold librwkv against. Everything is float64 additions, multiplications,
divisions and comparisons in a stated order; no exp of a C library, no fused multiply-add, no sum whose order is NumPy's
to choose. A vocabulary may have more rows than its tokenizer has tokens: only ids that have one are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
MASK = (1 << 64) - 1
LARGEST_SEED = MASK
LARGEST_PENALTY = 1e300  # sums of them stay finite

INVERSE_LN2 = 1.4426950408889634
LN2_HIGH = 0.693147180369123816490  # with 21 zero bits at the end: times a whole number up to 1100 is exact
LN2_LOW = 1.90821492927058770002e-10
COEFFICIENTS = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))
SMALLEST = -700.0  # below, a weight is 0: 1e-304 of the likeliest token's
PIECE = 8192
NOT_FINITE = "the model's logits are not finite"
FIRST = 64  # how many tokens are put in order before it is known whether that is enough


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ValueError for what makes no sense."""

    temperature: float = 1.0  # 0: always the likeliest token
    top_p: float = 0.7
    top_k: int = 0  # 0: as many as there are
    presence: float = 0.0
    frequency: float = 0.0
    decay: float = 0.996

    def __post_init__(self) -> None:
        for field in fields(self):
            # top_k is whole, and may be too large for a float.
            if field.name != "top_k" and not math.isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name} is no number")
        for name in ("presence", "frequency"):
            if abs(getattr(self, name)) > LARGEST_PENALTY:
                raise ValueError(f"{name} {getattr(self, name):g}: it is at most {LARGEST_PENALTY:g} either way")
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature:g}: it is 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p:g}: it is above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top-k {self.top_k}: it is 0 (all) or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"penalty decay {self.decay:g}: it is from 0 to 1")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that is none."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {seed}: it is from 0 to 2^64 - 1")


class Random:
    """xoshiro256**, seeded by splitmix64 (Blackman and Vigna, public domain algorithms)."""

    def __init__(self, seed: int) -> None:
        """`seed`: 0 to 2^64 - 1. Raises ValueError."""
        check_seed(seed)
        state = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & MASK
            z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            state.append(z ^ (z >> 31))
        self.state = state

    def bits(self) -> int:
        """The next 64 bits."""
        s = self.state
        result = (_rotated((s[1] * 5) & MASK, 7) * 9) & MASK
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = _rotated(s[3], 45)
        return result

    def below_one(self) -> float:
        """The next multiple of 2^-53 from 0 to below 1."""
        return (self.bits() >> 11) * 2.0**-53


def _rotated(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & MASK


def exp(x: Doubles) -> Doubles:
    """e to the power of each x <= 0; 0 below -700. Within 2 units in the last place, and the same everywhere.

    x = k ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), Taylor's polynomial of degree 13 in r.
    """
    if x.size > PIECE:  # what fits into the fastest cache is done twice as fast
        return np.concatenate([exp(x[at : at + PIECE]) for at in range(0, x.size, PIECE)])
    kept = np.maximum(x, SMALLEST)
    k = np.floor(kept * INVERSE_LN2 + 0.5)
    r = (kept - k * LN2_HIGH) - k * LN2_LOW
    out: Doubles = np.full_like(r, COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        out *= r
        out += coefficient
    out *= ((k.astype(np.int64) + 1023) << 52).view(np.float64)  # 2 to the power of k
    out[x < SMALLEST] = 0.0
    return out


class Sampler:
    """Chooses token after token, and remembers what it chose."""

    def __init__(
        self,
        settings: Sampling,
        seed: int,
        exist: NDArray[np.bool_] | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> None:
        """`exist`: [n_vocab], which ids have a token; the others are never chosen. None: all have one.

        `bias`: what is added to logits first.
        """
        self.settings = settings
        self.random = Random(seed)
        self.exist, self.bias = exist, dict(bias or {})
        self._ids = None if exist is None else _numbers(exist)
        self.counts: dict[int, float] = {}

    def choose(self, logits: NDArray[Any], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token. logits: [n_vocab], not changed. Raises ValueError where one is not finite.

        `allowed`: [n_vocab], at least one True: the others do not exist, in place of those that never do.
        """
        values = np.asarray(logits, np.float64).reshape(-1).copy()
        if not np.isfinite(values).all():
            raise ValueError(NOT_FINITE)
        s = self.settings
        for token, value in self.bias.items():
            values[token] += value
        if s.presence or s.frequency:
            for token, count in self.counts.items():
                values[token] -= s.presence + s.frequency * count
        ids = self._ids if allowed is None else _numbers(allowed)
        values = values if ids is None else values[ids]
        token = int(values.argmax()) if s.temperature == 0 else self._draw(values)
        token = int(ids[token]) if isinstance(ids, np.ndarray) else token
        self.counts = {old: left for old, count in self.counts.items() if (left := count * s.decay) > 0}
        self.counts[token] = self.counts.get(token, 0.0) + 1.0
        return token

    def copy(self) -> Sampler:
        """One that would choose the same from here on."""
        other = Sampler(self.settings, 0, self.exist, self.bias)
        other.random.state = list(self.random.state)
        other.counts = dict(self.counts)
        return other

    def forget(self) -> None:
        """Nothing was chosen yet; the random numbers go on."""
        self.counts = {}

    def _draw(self, values: Doubles) -> int:
        s = self.settings
        with np.errstate(over="ignore"):  # a tiny temperature: minus infinity, weight 0
            weights = exp((values - values.max()) / s.temperature)
        most = min(s.top_k or values.size, values.size)
        total = float(np.cumsum(weights[_first(values, most)] if s.top_k else weights)[-1])
        share = self.random.below_one()
        count = FIRST
        while True:
            order = _first(values, min(count, most))
            running = np.cumsum(weights[order])
            end = most
            kept = total
            if s.top_p < 1:
                end = int(np.searchsorted(running, s.top_p * total)) + 1
                kept = float(running[min(end, order.size) - 1])
            if end <= order.size or count >= most:
                at = int(np.searchsorted(running, share * kept, side="right"))
                return int(order[min(at, end - 1, order.size - 1)])
            if s.top_p >= 1:  # no need to know where the end is
                at = int(np.searchsorted(running, share * kept, side="right"))
                if at < order.size:
                    return int(order[at])
            count *= 8


def rated(
    logits: NDArray[np.float32], token: int, top: int, exist: NDArray[np.bool_] | None = None
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token, and those of the `top` likeliest ones; of equal ones the lowest id is first.

    Natural, the model's own, before temperature and penalties. An id without a token, where `exist` says so, is none of
    the likeliest, whatever the model thinks.
    """
    values = logits.astype(np.float64)
    highest = float(values.max())
    total = highest + math.log(float(np.cumsum(exp(values - highest))[-1]))
    order = values if exist is None else np.where(exist, values, -np.inf)
    likeliest = _first(order, min(top, values.size if exist is None else int(exist.sum()))) if top else ()
    return float(values[token]) - total, tuple((int(i), float(values[i]) - total) for i in likeliest)


def existing(tokenizer: object, n_vocab: int) -> NDArray[np.bool_] | None:
    """[n_vocab]: which ids of a model's vocabulary have a token; None where all have, or the tokenizer cannot tell.

    A tokenizer tells by `ids`, all that it has. The id 0, which ends a text, is one of every vocabulary.
    """
    ids: Iterable[int] | None = getattr(tokenizer, "ids", None)
    if ids is None:
        return None
    known = np.fromiter(ids, np.int64)
    mask = np.zeros(n_vocab, np.bool_)
    mask[known[(known >= 0) & (known < n_vocab)]] = True
    mask[0] = True
    return None if mask.all() else mask


def _numbers(mask: NDArray[np.bool_]) -> NDArray[np.int64] | slice:
    """Where a mask is True: as a slice, which costs nothing, where that is its beginning."""
    count = int(np.count_nonzero(mask))
    return slice(count) if mask[:count].all() else np.flatnonzero(mask)


def _first(values: Doubles, count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest values in order: largest first, of equal ones the lowest id."""
    if count >= values.size:
        return np.argsort(-values, kind="stable")
    least = np.partition(values, values.size - count)[values.size - count]
    some = np.flatnonzero(values >= least)
    found: NDArray[np.int64] = some[np.argsort(-values[some], kind="stable")][:count]
    return found
