"""The comparison with the reference, and the files that smoke's processes hand each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rwkvflow.worker.advice import given_by_recipe
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import (
    Answers,
    Array,
    DecodePace,
    Questions,
    SmokeReference,
    read_answers,
    read_reference,
    write_answers,
    write_reference,
)
from rwkvflow.worker.smoke.scores import Scores

LIMITS = {"logits": 0.1, "perplexity": 0.02}


def answers(seed: int = 0, rows: int = 4, vocab: int = 10) -> Answers:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, vocab), dtype=np.float32)
    losses = rng.random(rows, dtype=np.float32) + 1
    return Answers(logits, losses, logits.argmax(1).astype(np.int32), ((1, 2, 3), (4, 5, 6)))


def reference() -> SmokeReference:
    return SmokeReference(Questions((1, 2, 3, 4, 5), 4, ((1,), (2, 3)), 3), answers(), None, "auto", "a note é")


def test_equal_answers_differ_by_nothing() -> None:
    figures = judge.compare(answers(), answers())
    assert (figures.logits, figures.rise, figures.agreement) == (0, 0, 1)
    assert judge.problems("f", figures, LIMITS) == []


def test_the_worst_logit_is_found_and_named() -> None:
    logits = answers().logits.copy()
    logits[2, 7] += 3 * logits.std()
    spread = answers().logits.std()
    figures = judge.compare(answers(), replace(answers(), logits=logits))
    assert figures.token == 3
    assert figures.logits == pytest.approx(abs(logits[2, 7] - answers().logits[2, 7]) / spread, rel=1e-5)
    with given_by_recipe():
        (problem,) = judge.problems("ggml-q4_0", figures, LIMITS)
    assert "worst after 3 tokens" in problem
    assert "allows 0.1" in problem
    assert "limits: {ggml-q4_0: {logits: …}}" in problem


def test_a_perplexity_over_the_limit_is_named_and_a_lower_one_is_fine() -> None:
    worse = replace(answers(), losses=answers().losses + np.float32(0.05))
    figures = judge.compare(answers(), worse)
    assert figures.rise == pytest.approx(np.exp(0.05) - 1, rel=1e-4)
    with given_by_recipe():
        (problem,) = judge.problems("ggml-q4_0", figures, LIMITS)
    assert "5.13% above" in problem
    assert "allows 2.00%" in problem
    assert "perplexity: …" in problem
    (plain,) = judge.problems("ggml-q4_0", figures, LIMITS)
    assert plain.endswith("allows 2.00%"), "without a recipe, none is named"
    better = replace(answers(), losses=answers().losses - np.float32(0.5))
    assert judge.problems("ggml-q4_0", judge.compare(answers(), better), LIMITS) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value: float) -> None:
    assert judge.finite(answers()) is None
    logits = answers().logits.copy()
    logits[1, 3:5] = value
    assert judge.finite(replace(answers(), logits=logits)) == "2 of 10 logits are NaN or infinite after 2 tokens"
    losses = answers().losses.copy()
    losses[3] = value
    assert "after 4 tokens" in (judge.finite(replace(answers(), losses=losses)) or "")


def test_another_vocabulary() -> None:
    assert judge.shape_problem(answers(), answers(1)) is None
    assert "vocabulary of 12, the checkpoint one of 10" in (judge.shape_problem(answers(), answers(vocab=12)) or "")


def scored(logits: Array, text: Sequence[int], truth: Array | None = None, rows: int = 5) -> Answers:
    """What is kept of logits that come a few rows at a time."""
    scores = Scores(Questions(tuple(text), 2, (), 0, truth))
    for start in range(0, len(logits), rows):
        scores.take(logits[start : start + rows])
    return scores.answers((), threads=1, runtime=True)


def softmax(logits: Array) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(2, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_scores_are_what_the_whole_logits_give(vocab: int, tokens: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, truth = (rng.standard_normal((2, tokens, vocab)) * 10).astype(np.float32)
    text = rng.integers(0, vocab, tokens)
    found = scored(ours, text.tolist(), truth, rows)
    p, q = softmax(truth), softmax(ours)
    np.testing.assert_array_equal(found.logits, ours[:2])
    np.testing.assert_array_equal(found.likeliest, ours.argmax(1))
    np.testing.assert_allclose(found.losses, -np.log(q[np.arange(tokens - 1), text[1:]]), rtol=1e-5, atol=1e-6)
    assert found.divergence is not None
    np.testing.assert_allclose(found.divergence, (p * np.log(p / q)).sum(1), rtol=1e-6, atol=1e-9)
    again = scored(ours, text.tolist(), truth, 1)
    np.testing.assert_array_equal(again.losses, found.losses)
    assert again.divergence is not None
    np.testing.assert_allclose(again.divergence, found.divergence, rtol=1e-12, atol=1e-12)


def test_the_divergence_of_a_known_pair_and_of_equal_rows() -> None:
    truth = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32)) + np.array([[3], [-70]], np.float32)
    ours = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32))
    (first, second) = scored(ours, [0, 1], truth).divergence  # type: ignore[misc]
    assert first == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert 0 <= second < 1e-6
    assert scored(ours, [0, 1]).divergence is None
    assert len(scored(ours, [0, 1], truth[:1]).divergence) == 1  # type: ignore[arg-type]
    assert scored(ours, [0, 1], truth[:, :2]).divergence is None, "another vocabulary is told elsewhere"


def test_agreement_is_over_the_whole_text_and_divergence_its_mean() -> None:
    likeliest = answers().likeliest.copy()
    likeliest[3] += 1
    figures = judge.compare(answers(), replace(answers(), likeliest=likeliest, divergence=np.array([0.5, 0.0, 0.1])))
    assert figures.agreement == 0.75
    assert figures.divergence == pytest.approx(0.2)
    assert figures.divergence_tokens == 3


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, 0), (3e-7, 0), (1.26e-6, 1e-6), (0.00012345, 0.000123), (0.12345, 0.123), (1234.5, 1230)]
)
def test_small_figures_are_rounded_to_what_every_machine_finds(value: float, shown: float) -> None:
    assert judge.small(value) == shown


def reported(of: Answers) -> bytes:
    figures, stored = judge.compare(answers(), of), judge.Stored(1000, 650)
    return judge.report("f", "the engine", reference(), of, figures, stored, LIMITS, [("The ", "owl é")], ["over"])


def test_the_report_is_canonical_and_holds_no_time() -> None:
    one, two = (reported(answers(1)) for _ in range(2))
    assert one == two
    content = json.loads(one)
    assert content["passed"] is False
    assert content["continuations"] == [{"prompt": "The ", "text": "owl é"}]
    assert content["logits"] == round(judge.compare(answers(), answers(1)).logits, 4)
    assert (content["weights"], content["weight_bytes"], content["bits_per_weight"]) == (1000, 650, 5.2)
    assert content["kl_divergence"] is None
    assert not any("second" in key or "speed" in key for key in content)


def test_a_speed_that_was_measured_is_told_with_its_machine() -> None:
    content = json.loads(reported(replace(answers(1), pace=DecodePace(81.2539, 120, 2), runtime=True)))
    assert content["tokens_per_second"] == 81.3
    assert content["speed"] == {"tokens": 120, "threads": 2, "cpu": judge.processor()}
    assert content["speed"]["cpu"]


def test_a_speed_is_the_median_without_the_warm_up() -> None:
    scores = Scores(Questions((1, 2), 2, (), 0, speed=True))
    scores.take(answers().logits[:2])
    for seconds in [9.0] * 8 + [0.5, 0.25, 0.25, 0.25, 3.0]:
        scores.took(seconds)
    assert scores.answers((), threads=4, runtime=True).pace == DecodePace(4.0, 5, 4)


def test_reference_and_answers_survive_their_files_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    write_reference(first, reference())
    write_reference(second, read_reference(first))
    assert first.read_bytes() == second.read_bytes()
    assert read_reference(first).questions == reference().questions
    assert isinstance(read_reference(first).answers.logits, np.memmap)
    np.testing.assert_array_equal(read_reference(first).judged.truth, answers().logits)
    whole = replace(answers(), note="n", divergence=np.array([0.1, 0.2]), runtime=False, pace=DecodePace(3.5, 7, None))
    for kept in (answers(), whole):
        write_answers(first, kept)
        back = read_answers(first)
        for name in ("logits", "losses", "likeliest", "divergence"):
            np.testing.assert_array_equal(getattr(back, name), getattr(kept, name))
        assert (back.continuations, back.note) == (kept.continuations, kept.note)
        assert (back.runtime, back.pace) == (kept.runtime, kept.pace)


def test_a_map_that_leaves_its_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_reference(path, reference())
    data = path.read_bytes()
    for old, new in (
        (b"(4, 10)", b"(9, 10)"),
        (b"'<f4'", b"'|O4'"),
        (b"'fortran_order': False", b"'fortran_order': True "),
    ):
        assert data.count(old) >= 1
        path.write_bytes(data.replace(old, new, 1))
        with pytest.raises(WorkerError, match="damaged"):
            read_reference(path)


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
