"""The choice of types: never over the limit, never below its bound, and the best where all can be tried."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.worker.conversion import assign
from rwkvflow.worker.conversion.assign import Assignment, TypeChoice, within_loss, within_size

CHOICE = st.builds(
    TypeChoice, st.text("abc", min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 60).map(float)
)
CHOICES = st.lists(st.lists(CHOICE, min_size=1, max_size=4, unique_by=lambda c: c.kind), min_size=1, max_size=5)


def named(some: list[list[TypeChoice]]) -> dict[str, list[TypeChoice]]:
    return {f"m{index}": each for index, each in enumerate(some)}


def every(some: dict[str, list[TypeChoice]]) -> list[tuple[int, float]]:
    return [(sum(c.size for c in p), math.fsum(c.loss for c in p)) for p in itertools.product(*some.values())]


def check(found: Assignment, some: dict[str, list[TypeChoice]]) -> None:
    picked = [next(c for c in some[name] if c.kind == kind) for name, kind in found.kinds.items()]
    assert list(found.kinds) == list(some)
    assert sum(c.size for c in picked) == found.size
    assert math.fsum(c.loss for c in picked) == pytest.approx(found.loss)


@given(CHOICES, st.integers(0, 300))
def test_the_least_loss_within_a_size(listed: list[list[TypeChoice]], most: int) -> None:
    some = named(listed)
    fitting = [loss for size, loss in every(some) if size <= most]
    found = within_size(some, most)
    assert (found is None) == (not fitting)
    if found is not None:
        check(found, some)
        assert found.size <= most
        assert found.loss == min(fitting)
        assert found.bound <= found.loss + 1e-9


@given(CHOICES, st.integers(0, 300))
def test_the_least_size_within_a_loss(listed: list[list[TypeChoice]], most: int) -> None:
    some = named(listed)
    fitting = [size for size, loss in every(some) if loss <= most]
    found = within_loss(some, most)
    assert (found is None) == (not fitting)
    if found is not None:
        check(found, some)
        assert found.loss <= most
        assert found.size == min(fitting)
        assert found.bound <= found.size + 1e-9


def test_many_matrices_are_thinned_out_and_stay_near_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign, "MOST", 300)
    some = {
        f"m{i}": [
            TypeChoice(kind, 1000 * bits + 7 * i * bits, (1 + i * 37 % 11) / 4**bits)
            for kind, bits in zip("abcdef", range(3, 9), strict=True)
        ]
        for i in range(60)
    }
    most = sum(each[2].size for each in some.values())
    found = within_size(some, most)
    assert found is not None
    check(found, some)
    assert found.size <= most
    assert found.bound <= found.loss <= 1.02 * found.bound
    same = sum(each[2].loss for each in some.values())
    assert found.loss < 0.95 * same, "better than one type for all"
    assert within_size(some, most) == found
