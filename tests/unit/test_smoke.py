"""The comparison with the reference, and the files that smoke's processes hand each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker import smoke
from rwkvflow.worker.protocol import WorkerError
from rwkvflow.worker.questions import (
    Answers,
    Questions,
    Reference,
    losses_of,
    read_answers,
    read_reference,
    write_answers,
    write_reference,
)

LIMITS = {"logits": 0.1, "perplexity": 0.02}


def answers(seed: int = 0, rows: int = 4, vocab: int = 10) -> Answers:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, vocab), dtype=np.float32)
    return Answers(logits, rng.random(rows, dtype=np.float32) + 1, ((1, 2, 3), (4, 5, 6)))


def reference() -> Reference:
    return Reference(Questions((1, 2, 3, 4, 5), 4, ((1,), (2, 3)), 3), answers(), None, "auto", "a note é")


def test_equal_answers_differ_by_nothing() -> None:
    figures = smoke.compare(answers(), answers())
    assert (figures.logits, figures.rise, figures.agreement) == (0, 0, 1)
    assert smoke.problems("f", figures, LIMITS) == []


def test_the_worst_logit_is_found_and_named() -> None:
    logits = answers().logits.copy()
    logits[2, 7] += 3 * logits.std()
    spread = answers().logits.std()
    figures = smoke.compare(answers(), replace(answers(), logits=logits))
    assert figures.token == 3
    assert figures.logits == pytest.approx(abs(logits[2, 7] - answers().logits[2, 7]) / spread, rel=1e-5)
    (problem,) = smoke.problems("ggml-q4_0", figures, LIMITS)
    assert "worst after 3 tokens" in problem
    assert "allows 0.1" in problem
    assert "limits: {ggml-q4_0: {logits: …}}" in problem


def test_a_perplexity_over_the_limit_is_named_and_a_lower_one_is_fine() -> None:
    worse = replace(answers(), losses=answers().losses + np.float32(0.05))
    figures = smoke.compare(answers(), worse)
    assert figures.rise == pytest.approx(np.exp(0.05) - 1, rel=1e-4)
    (problem,) = smoke.problems("ggml-q4_0", figures, LIMITS)
    assert "5.13% above" in problem
    assert "allows 2.00%" in problem
    assert "perplexity: …" in problem
    better = replace(answers(), losses=answers().losses - np.float32(0.5))
    assert smoke.problems("ggml-q4_0", smoke.compare(answers(), better), LIMITS) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value: float) -> None:
    assert smoke.finite(answers()) is None
    logits = answers().logits.copy()
    logits[1, 3:5] = value
    assert smoke.finite(replace(answers(), logits=logits)) == "2 of 10 logits are NaN or infinite after 2 tokens"
    losses = answers().losses.copy()
    losses[3] = value
    assert "after 4 tokens" in (smoke.finite(replace(answers(), losses=losses)) or "")


def test_another_vocabulary() -> None:
    assert smoke.shape_problem(answers(), answers(1)) is None
    assert "vocabulary of 12, the checkpoint one of 10" in (smoke.shape_problem(answers(), answers(vocab=12)) or "")


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_losses_are_minus_log_softmax(vocab: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((rows, vocab)) * 10).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    wide = logits.astype(np.float64)
    expected = [np.log(np.exp(row).sum()) - row[target] for row, target in zip(wide, targets, strict=True)]
    np.testing.assert_allclose(losses_of(logits, targets), expected, rtol=1e-5, atol=1e-6)


def test_the_report_is_canonical_and_holds_no_time() -> None:
    figures = smoke.compare(answers(), answers(1))
    one, two = (
        smoke.report("f", "the engine", reference(), figures, LIMITS, [("The ", "owl é")], ["over"]) for _ in range(2)
    )
    assert one == two
    content = json.loads(one)
    assert content["passed"] is False
    assert content["continuations"] == [{"prompt": "The ", "text": "owl é"}]
    assert content["logits"] == round(figures.logits, 4)
    assert not any("time" in key or "second" in key for key in content)


def test_reference_and_answers_survive_their_files_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    write_reference(first, reference())
    write_reference(second, read_reference(first))
    assert first.read_bytes() == second.read_bytes()
    assert read_reference(first).questions == reference().questions
    write_answers(first, answers())
    np.testing.assert_array_equal(read_answers(first).logits, answers().logits)
    assert read_answers(first).continuations == answers().continuations


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_damaged_files_are_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    path.write_bytes(junk)
    with pytest.raises(WorkerError, match="damaged"):
        read_reference(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_reference(path, reference())
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(WorkerError):
            read_reference(path)
