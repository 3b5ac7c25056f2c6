"""Types for texts of several kinds: within the size, none of them is paid for by another, and the bound holds."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.worker.conversion.balance import MeasuredType, balanced, losses_of, shares

TEXTS = 3
LOSSES = st.tuples(*[st.integers(0, 60).map(float)] * TEXTS)
CHOICE = st.builds(MeasuredType, st.text("abc", min_size=1, max_size=3), st.integers(1, 60), LOSSES)
CHOICES = st.lists(st.lists(CHOICE, min_size=1, max_size=4, unique_by=lambda c: c.kind), min_size=1, max_size=4)
USUAL = st.tuples(*[st.integers(0, 60).map(float)] * TEXTS)


@given(CHOICES, st.integers(0, 240), USUAL)
def test_no_choice_within_the_size_is_below_the_bound(
    listed: list[list[MeasuredType]], most: int, usual: tuple[float, ...]
) -> None:
    some = {f"m{index}": each for index, each in enumerate(listed)}
    every = [dict(zip(some, (c.kind for c in picked), strict=True)) for picked in itertools.product(*listed)]

    def size(kinds: dict[str, str]) -> int:
        return sum(next(c.size for c in each if c.kind == kinds[name]) for name, each in some.items())

    def worst(kinds: dict[str, str]) -> float:
        return max(shares(losses_of(some, kinds), usual), default=0.0)

    fitting = [worst(kinds) for kinds in every if size(kinds) <= most]
    found = balanced(some, most, usual)
    assert (found is None) == (not fitting)
    if found is not None:
        assert size(dict(found.kinds)) <= most
        assert found.losses == losses_of(some, found.kinds)
        assert found.worst == worst(dict(found.kinds))
        assert found.bound <= min(fitting) + 1e-9
        assert balanced(some, most, usual) == found


def test_a_text_that_loses_little_is_not_given_up_for_the_others() -> None:
    """One matrix matters to the first text alone, whose losses are a hundredth: sums over all do not see it."""
    bits = {"q3": 3, "q4": 4, "q6": 6}
    some = {
        f"m{index}": [
            MeasuredType(kind, 100 * size, (4.0**-size * (0.01 if index < 3 else 0.001), 4.0**-size * (index >= 3)))
            for kind, size in bits.items()
        ]
        for index in range(12)
    }
    plain = dict.fromkeys(some, "q4")
    usual = losses_of(some, plain)
    found = balanced(some, 12 * 400, usual)
    assert found is not None
    assert found.worst <= 1
    by_sum = balanced({n: [MeasuredType(c.kind, c.size, (sum(c.losses),)) for c in s] for n, s in some.items()},
                      12 * 400, (math.fsum(usual),))  # fmt: skip
    assert by_sum is not None
    assert found.worst < max(shares(losses_of(some, by_sum.kinds), usual))
    assert found.bound <= found.worst <= 1.2 * found.bound


def test_nothing_lost_is_no_division() -> None:
    some = {"m": [MeasuredType("q4", 4, (0.0, 0.0)), MeasuredType("q8", 8, (0.0, 0.0))]}
    found = balanced(some, 8, (0.0, 0.0))
    assert found is not None
    assert (found.kinds, found.worst) == ({"m": "q4"}, 0.0)
    assert balanced(some, 3, (0.0, 0.0)) is None
    assert found.losses == pytest.approx((0, 0))
