"""Guessing ahead goes on where it pays, and is off where it does not."""

from __future__ import annotations

import pytest

from rwkvflow.engine.drafts import Payoff


def share(payoff: Payoff, passes: int, cost: float, tokens: int, texts: int = 1) -> float:
    """Of so many passes those with guesses, where these cost `cost` of one without and bring so many tokens a text."""
    guessed = 0
    for _ in range(passes):
        pays = payoff.pays(texts)
        guessed += pays
        payoff.took(texts, pays, (tokens if pays else 1) * texts, cost if pays else 1.0)
    return guessed / passes


@pytest.mark.parametrize(
    ("cost", "tokens", "least", "most"),
    [(1.6, 3, 0.9, 1.0), (1.6, 2, 0.9, 1.0), (2.5, 2, 0.0, 0.06), (1.2, 1, 0.0, 0.06), (1.05, 1, 0.0, 0.06)],
)
def test_it_is_off_where_it_does_not_pay(cost: float, tokens: int, least: float, most: float) -> None:
    for texts in (1, 5):
        assert least <= share(Payoff(), 2000, cost, tokens, texts) <= most


def test_it_is_tried_again() -> None:
    payoff = Payoff()
    assert share(payoff, 1000, 2.5, 1) < 0.1
    assert share(payoff, 1500, 1.6, 4) > 0.5
    assert share(payoff, 1000, 2.5, 1) < 0.1


def test_a_smaller_model_that_catches_up_is_not_judged_by_that() -> None:
    payoff = Payoff()
    payoff.took(1, False, 1, 1.0)
    payoff.took(1, True, 4, 1000.0)
    for _ in range(20):
        payoff.took(1, True, 4, 1.6)
    assert not payoff.resting
