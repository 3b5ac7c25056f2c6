"""Sampling does what its description says, to the bit, and what the names promise."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.engine.sampling import Random, Sampler, Sampling, existing, exp

FINITE = st.floats(-80, 80, width=32)


def plain(values: list[float], s: Sampling, share: float) -> int:
    """The description in sampling.py, word for word."""
    best = max(values)
    if s.temperature == 0:
        return values.index(best)
    weights = [float(exp(np.array([(v - best) / s.temperature]))[0]) for v in values]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if s.top_k:
        order = order[: s.top_k]
    total = 0.0
    for i in order if s.top_k else range(len(values)):
        total += weights[i]
    kept = total
    if s.top_p < 1:
        running, end = 0.0, 0
        while end < len(order):
            running += weights[order[end]]
            end += 1
            if running >= s.top_p * total:
                break
        order, kept = order[:end], running
    running = 0.0
    for i in order:
        running += weights[i]
        if running > share * kept:
            return i
    return order[-1]


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    values=st.lists(FINITE | st.sampled_from([0.0, 1.0, 5.0]), min_size=1, max_size=700),
    temperature=st.sampled_from([0.0, 1e-300, 0.01, 0.5, 1.0, 3.0, 1e9]),
    top_p=st.sampled_from([1e-9, 0.3, 0.7, 0.999999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 63, 64, 65, 600, 10**6, 10**400]),
    seed=st.integers(0, 2**64 - 1),
)
def test_it_does_what_the_description_says(
    data: Any, values: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    if data.draw(st.booleans()):  # many of them equal: ties at every boundary
        values = [float(round(value / 20)) for value in values]
    chosen = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    random = Random(seed)
    share = random.below_one()
    assert Sampler(chosen, seed).choose(np.array(values, np.float32)) == plain(values, chosen, share)


@settings(deadline=None)
@given(
    data=st.data(),
    values=st.lists(FINITE | st.sampled_from([0.0, 1.0, 80.0]), min_size=1, max_size=200),
    temperature=st.sampled_from([0.0, 0.5, 1e9]),
    top_p=st.sampled_from([0.3, 1.0]),
    top_k=st.sampled_from([0, 2, 10**6]),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_id_without_a_token_is_never_chosen(
    data: Any, values: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    """The others are chosen as if there were no such id, whatever its logit, a bias on it, or what was said before."""
    few = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    rows = data.draw(few | st.integers(1, len(values)).map(lambda n: [i < n for i in range(len(values))]))
    exist = np.array([True, *rows[1:]])
    kept = np.flatnonzero(exist)
    chosen = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, presence=0.5)
    logits = np.array(values, np.float32)
    bias = {int(i): 50.0 for i in np.flatnonzero(~exist)[:3]}
    whole, alone = Sampler(chosen, seed, exist, bias), Sampler(chosen, seed)
    for sampler in (whole, whole.copy()):
        token = sampler.choose(logits)
        assert exist[token]
    assert [int(kept[alone.choose(logits[kept])]) for _ in range(3)][1:] == [whole.choose(logits) for _ in range(2)]


class _Tokens:
    def __init__(self, *ids: int) -> None:
        self.ids = ids


def test_which_ids_have_a_token() -> None:
    assert existing(object(), 4) is None
    assert existing(_Tokens(0, 1, 2, 3), 4) is None
    for tokens, expected in (((1, 2, 9), [1, 1, 1, 0]), ((3,), [1, 0, 0, 1]), ((), [1, 0, 0, 0])):
        mask = existing(_Tokens(*tokens), 4)
        assert mask is not None
        assert mask.tolist() == list(map(bool, expected)), "0 ends a text of every vocabulary"


def test_more_tokens_than_are_put_in_order_at_first() -> None:
    values = np.zeros(5000, np.float32)
    for seed in range(50):
        share = Random(seed).below_one()
        assert Sampler(Sampling(top_p=1.0), seed).choose(values) == int(share * 5000)
        assert Sampler(Sampling(top_p=0.5), seed).choose(values) == int(share * 2500)


@given(st.lists(st.floats(-745, 0), min_size=1, max_size=50))
def test_exp_is_exp(x: list[float]) -> None:
    for value, got in zip(x, exp(np.array(x)).tolist(), strict=True):
        if value < -700:
            assert got == 0
        else:
            assert math.isclose(got, math.exp(value), rel_tol=5e-16)
    assert exp(np.array([0.0]))[0] == 1.0


def test_exp_gives_these_very_bits() -> None:
    """So does librwkv; a change of a single bit changes what people get for a seed."""
    x = -np.arange(0, 700, 7, dtype=np.float64) / 3 - 0.1
    assert exp(x)[:4].tobytes().hex() == "3a2bd5996df4ec3f2f38b4c66176b63f4e9bf7be016d813f1e0fa2547b094b3f"
    import hashlib

    assert hashlib.sha256(exp(x).astype("<f8").tobytes()).hexdigest()[:16] == "dfa67dc045cea5e5"


def test_the_generator_is_the_published_one() -> None:
    """splitmix64 from 0, and xoshiro256** from 1, 2, 3, 4, as their authors' programs print them."""
    assert Random(0).state == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    random = Random(0)
    random.state = [1, 2, 3, 4]
    assert [random.bits() for _ in range(5)] == [11520, 0, 1509978240, 1215971899390074240, 1216172134540287360]


def test_shares_are_as_likely_as_their_weights() -> None:
    values = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    sampler = Sampler(Sampling(top_p=1.0), 1)
    counts = np.bincount([sampler.choose(values) for _ in range(20000)], minlength=4) / 20000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.015
    nucleus = Sampler(Sampling(top_p=0.75), 1)
    counts = np.bincount([nucleus.choose(values) for _ in range(20000)], minlength=4) / 20000
    assert np.abs(counts - [0.625, 0.375, 0, 0]).max() < 0.015
    cold = Sampler(Sampling(top_p=1.0, temperature=0.5), 1)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365
    counts = np.bincount([cold.choose(values) for _ in range(20000)], minlength=4) / 20000
    assert np.abs(counts - squares).max() < 0.015


def test_penalties_push_away_what_was_said_and_fade() -> None:
    values = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    said = Sampler(Sampling(temperature=0, presence=2.5), 0)
    assert [said.choose(values) for _ in range(4)] == [0, 1, 2, 0]
    often = Sampler(Sampling(temperature=0, frequency=0.6, decay=1.0), 0)
    assert [often.choose(values) for _ in range(4)] == [0, 0, 1, 0]
    fading = Sampler(Sampling(temperature=0, frequency=4.0, decay=0.1), 0)
    assert [fading.choose(values) for _ in range(4)] == [0, 1, 0, 1]
    assert math.isclose(fading.counts[0], 0.1 * (1 + 0.01))


def test_a_seed_gives_the_same_again_and_another_seed_does_not() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    runs = [[Sampler(Sampling(), seed).choose(values) for seed in range(30)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert statistics.pvariance(runs[0]) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"decay": 1.5},
        {"presence": math.inf},
        {"frequency": -1e301},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it is|no number"):
        Sampling(**wrong)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Random(seed)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Sampler(Sampling(), 0).choose(np.array([0.0, bad], np.float32))
