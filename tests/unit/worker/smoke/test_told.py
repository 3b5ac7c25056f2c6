"""Answers come from where others' code ran: figures are reckoned again, and a file that is not ours is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.smoke.questions import (
    Answers,
    Questions,
    SmokeReference,
    read_questions,
    write_answers,
    write_questions,
)
from rwkvflow.worker.smoke.scores import Scores
from rwkvflow.worker.smoke.told import read_told

TEXT, VOCABULARY, TOKENS = (1, 5, 2, 6, 3, 7, 0, 4), 8, 3
ASKED = Questions(TEXT, 4, ((1, 2), (3,)), TOKENS)


def logits_of(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(len(TEXT), VOCABULARY)).astype(np.float32)


def answers_of(questions: Questions, seed: int) -> Answers:
    scores = Scores(questions)
    scores.take(logits_of(seed))
    return scores.answers(((1, 2, 3), (4, 5, 6)), threads=None, runtime=True)


def reference_of(kept: int) -> SmokeReference:
    """The reference keeps the logits of so many tokens, maybe more than are asked for."""
    return SmokeReference(ASKED, answers_of(replace(ASKED, logits=kept), 1), None, "bytes", None)


@pytest.mark.parametrize("kept", [4, 6, 8])
def test_what_is_told_equals_what_was_reckoned_on_the_spot(tmp_path: Path, kept: int) -> None:
    reference = reference_of(kept)
    write_questions(tmp_path / "questions", reference)
    questions, eps = read_questions(tmp_path / "questions", speed=False)
    assert (questions.logits, questions.truth, eps) == (kept, None, None)
    assert "losses" not in (tmp_path / "questions").read_text(), "nothing of what the reference says"
    write_answers(tmp_path / "answers", answers_of(questions, 2))
    told, wanted = read_told(tmp_path / "answers", reference), answers_of(reference.judged, 2)
    for name in ("logits", "losses", "likeliest", "divergence"):
        np.testing.assert_array_equal(getattr(told, name), getattr(wanted, name), name)
    assert told.continuations == wanted.continuations


def test_figures_that_are_told_are_not_believed(tmp_path: Path) -> None:
    reference = reference_of(8)
    honest = answers_of(replace(ASKED, logits=8, deferred=True), 2)
    write_answers(tmp_path / "answers", replace(honest, divergence=np.zeros(8), likeliest=honest.likeliest))
    with pytest.raises(WorkerError, match="damaged"):
        read_told(tmp_path / "answers", reference)
    full = answers_of(replace(ASKED, logits=8), 2)  # losses of its own, for tokens that are judged here
    write_answers(tmp_path / "answers", replace(full, losses=np.zeros_like(full.losses)))
    with pytest.raises(WorkerError, match="none to the questions"):
        read_told(tmp_path / "answers", reference)


def array(value: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(value), version=(1, 0))
    return out.getvalue()


def header(dtype: str, shape: str, fortran: bool = False) -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def meta(**changes: Any) -> bytes:
    content = {"continuations": [[1, 2, 3], [4, 5, 6]], "proof": None, "runtime": True, "pace": None, **changes}
    return array(np.frombuffer(json.dumps(content).encode(), np.uint8))


GOOD: dict[str, bytes] = {
    "logits": array(logits_of(2)),
    "losses": array(np.zeros(0, np.float32)),
    "likeliest": array(np.zeros(0, np.int32)),
    "meta": meta(),
}
HOSTILE: dict[str, dict[str, bytes | None]] = {
    "no logits": {"logits": None},
    "something besides": {"more": b"x"},
    "too few rows": {"logits": array(logits_of(2)[:3])},
    "no matrix": {"logits": array(np.zeros(8, np.float32))},
    "other numbers": {"logits": array(logits_of(2).astype(np.float64))},
    "a header of a petabyte": {"logits": header("'<f4'", f"(8, {1 << 47})")},
    "a size below zero": {"logits": header("'<f4'", "(8, -8)")},
    "python objects": {"logits": header("'|O'", "(8, 8)") + b"x" * 512},
    "columns first": {"logits": header("'<f4'", "(8, 8)", fortran=True) + b"x" * 256},
    "a header that is code": {"logits": header("__import__('os')", "(8, 8)")},
    "losses of a petabyte": {"losses": header("'<f4'", f"({1 << 48},)")},
    "objects for losses": {"losses": header("'|O'", "(0,)")},
    "no JSON": {"meta": array(np.frombuffer(b"{", np.uint8))},
    "deep JSON": {"meta": array(np.frombuffer(b"[" * 100_000, np.uint8))},
    "a list": {"meta": array(np.frombuffer(b"[]", np.uint8))},
    "no continuations": {"meta": meta(continuations=None)},
    "a number for a row": {"meta": meta(continuations=[7, 8])},
    "one too few": {"meta": meta(continuations=[[1, 2, 3]])},
    "too long": {"meta": meta(continuations=[[1, 2, 3, 4], [4, 5, 6]])},
    "tokens that are none": {"meta": meta(continuations=[[1, 2, 8], [4, 5, 6]])},
    "below zero": {"meta": meta(continuations=[[1, 2, -1], [4, 5, 6]])},
    "words": {"meta": meta(continuations=[["a", "b", "c"], [4, 5, 6]])},
    "a note that is none": {"meta": meta(proof={"x": 1})},
    "a pace of infinity": {"meta": meta(pace={"tokens_per_second": 1e999, "tokens": 1, "threads": 1})},
    "a pace that is none": {"meta": meta(pace={"speed": 1})},
    "too much": {"meta": meta(proof="x" * (5 << 20))},
}


def write(path: Path, members: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)


def test_the_good_one_is_good(tmp_path: Path) -> None:
    write(tmp_path / "x", dict(GOOD))
    assert read_told(tmp_path / "x", reference_of(8)).logits.shape == (4, VOCABULARY)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x", {**GOOD, **HOSTILE[name]})
    with pytest.raises(WorkerError):
        read_told(tmp_path / "x", reference_of(8))


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


OTHERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" + b"x" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "a link": a_link,
    "packed": lambda path: write(path, {**GOOD, "meta": meta(proof="x" * 1000)}, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_file_of_answers_is_refused(tmp_path: Path, name: str) -> None:
    OTHERS[name](tmp_path / "x")
    with pytest.raises(WorkerError):
        read_told(tmp_path / "x", reference_of(8))


def test_a_continuation_by_an_id_without_a_token_is_none(tmp_path: Path) -> None:
    reference = reference_of(4)
    write_answers(tmp_path / "answers", answers_of(replace(ASKED, deferred=True), 2))
    assert read_told(tmp_path / "answers", reference).continuations[1] == (4, 5, 6)
    barred = replace(reference, questions=replace(ASKED, nameless=(6, 7)))
    with pytest.raises(WorkerError, match="none to the questions"):
        read_told(tmp_path / "answers", barred)
