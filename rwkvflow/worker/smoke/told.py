"""Answers that came out of a sandbox where others' code ran: a file that may hold anything, read with that in mind."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.smoke.questions import Answers, DecodePace, SmokeReference, read_answers
from rwkvflow.worker.smoke.scores import ROWS, Scores

META_BYTES = 4 << 20
NOTE_CHARACTERS = 1000
MEMBERS = {"logits.npy", "losses.npy", "likeliest.npy", "meta.npy"}


def read_told(path: Path, reference: SmokeReference) -> Answers:
    """The answers, with all figures reckoned here from the logits that were told. Raises WorkerError.

    Only what follows tokens whose logits are too many to keep is taken as it was told.
    """
    _check_members(path)
    try:
        told = read_answers(path, mapped=True)
    except (ValueError, TypeError, KeyError, MemoryError, RecursionError, OverflowError) as error:
        raise WorkerError(f"its answers cannot be read ({type(error).__name__})") from None
    asked, kept = reference.questions, len(reference.answers.logits)
    count = len(asked.text)
    logits = told.logits
    shapes = (logits.shape[:1], told.losses.shape, told.likeliest.shape)
    types = [array.dtype.str for array in (logits, told.losses, told.likeliest)]
    if (
        logits.ndim != 2
        or shapes != ((kept,), (max(0, count - 1 - kept),), (count - kept,))
        or types != ["<f4", "<f4", "<i4"]
        or not _proper(told, logits.shape[1], [asked.tokens] * len(asked.prompts), asked.nameless)
    ):
        raise WorkerError("its answers are none to the questions that were asked")
    if logits.shape[1] != reference.answers.logits.shape[1]:
        return replace(told, logits=np.array(logits[: asked.logits]))  # which the judge names
    scores = Scores(reference.judged)
    for start in range(0, kept, ROWS):
        scores.take(np.array(logits[start : start + ROWS]))
    own = scores.answers(told.continuations, threads=None, runtime=told.runtime)
    return replace(
        own,
        losses=np.concatenate([own.losses, told.losses]),
        likeliest=np.concatenate([own.likeliest, told.likeliest]),
        note=None if told.note is None else told.note[:NOTE_CHARACTERS],
        pace=told.pace,
    )


def _check_members(path: Path) -> None:
    """Raises WorkerError unless the file holds the arrays as we write them: nothing packed, and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WorkerError(f"its answers are damaged: {error}") from None
    names = [item.filename for item in found]
    packed = any(item.compress_type != zipfile.ZIP_STORED or item.file_size != item.compress_size for item in found)
    size = sum(item.file_size for item in found)
    meta = sum(item.file_size for item in found if item.filename == "meta.npy")
    if packed or set(names) != MEMBERS or len(names) != len(MEMBERS) or size > path.stat().st_size or meta > META_BYTES:
        raise WorkerError("its answers are damaged: they do not hold what we write")


def _proper(told: Answers, vocabulary: int, lengths: list[int], nameless: tuple[int, ...]) -> bool:
    """Whether continuations are tokens, as many as were asked for, and the rest is of its kind."""
    rows, barred = told.continuations, frozenset(nameless)
    if len(rows) != len(lengths) or any(len(row) > most for row, most in zip(rows, lengths, strict=True)):
        return False
    chosen = [token for row in rows for token in row]
    if not all(isinstance(token, int) and 0 <= token < vocabulary and token not in barred for token in chosen):
        return False
    return (told.note is None or isinstance(told.note, str)) and (told.pace is None or _proper_pace(told.pace))


def _proper_pace(pace: DecodePace) -> bool:
    rate, threads = pace.tokens_per_second, pace.threads
    if not isinstance(rate, int | float) or not math.isfinite(rate) or not 0 < rate < 1e9:
        return False
    return isinstance(pace.tokens, int) and (threads is None or (isinstance(threads, int) and 0 < threads < 1 << 20))
