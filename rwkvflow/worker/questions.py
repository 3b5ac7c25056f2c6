"""What smoke asks of a model, and what came back; as files of named arrays, the same bytes for equal content."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.protocol import WorkerError

Array = NDArray[np.float32]
TEXT_TOKENS = 512  # of the text, for the perplexity
LOGIT_TOKENS = 64  # of the text, after which all logits are compared


@dataclass(frozen=True)
class Questions:
    """Token ids, so that nothing that answers needs a tokenizer.

    text     at least two tokens; the model predicts each from those before it
    logits   after so many of them, at most len(text), all logits are kept
    prompts  each with at least one token, continued greedily by `tokens`
    """

    text: tuple[int, ...]
    logits: int
    prompts: tuple[tuple[int, ...], ...]
    tokens: int


@dataclass(frozen=True)
class Answers:
    """logits [n, V] after each of the first n text tokens; losses [T-1] in nats; the continuations' token ids.

    note: what the report should say of how they came about; None where the consumer simply ran the artifact.
    """

    logits: Array
    losses: Array
    continuations: tuple[tuple[int, ...], ...]
    note: str | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(np.exp(np.mean(self.losses, dtype=np.float64)))


@dataclass(frozen=True)
class Reference:
    """The questions, the reference's answers, and how tokens become text ("kind" and note of the tokenizer)."""

    questions: Questions
    answers: Answers
    group_norm_eps: float | None
    tokenizer: str
    note: str | None


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """An .npz (np.load reads it) with fixed dates, in the order given; meta as JSON in the array "meta"."""
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
    arrays = {**arrays, "meta": np.frombuffer(text, np.uint8)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Raises WorkerError for a file that write_arrays did not write."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        meta = json.loads(arrays.pop("meta").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkerError(f"{path.name} is damaged or not a file of smoke results: {error}") from None
    return arrays, meta


def write_answers(path: Path, answers: Answers) -> None:
    """Answers alone."""
    arrays: dict[str, NDArray[Any]] = {"logits": answers.logits, "losses": answers.losses}
    write_arrays(path, arrays, {"continuations": answers.continuations, "proof": answers.note})


def read_answers(path: Path) -> Answers:
    """Reverse of write_answers."""
    arrays, meta = read_arrays(path)
    return _answers(path, arrays, meta)


def write_reference(path: Path, reference: Reference) -> None:
    """The reference step's output."""
    asked, answers = reference.questions, reference.answers
    arrays: dict[str, NDArray[Any]] = {"logits": answers.logits, "losses": answers.losses}
    meta = {
        "text": asked.text,
        "logits": asked.logits,
        "prompts": asked.prompts,
        "tokens": asked.tokens,
        "continuations": answers.continuations,
        "group_norm_eps": reference.group_norm_eps,
        "tokenizer": reference.tokenizer,
        "note": reference.note,
    }
    write_arrays(path, arrays, meta)


def read_reference(path: Path) -> Reference:
    """Reverse of write_reference."""
    arrays, meta = read_arrays(path)
    try:
        asked = Questions(
            tuple(meta["text"]), meta["logits"], tuple(tuple(row) for row in meta["prompts"]), meta["tokens"]
        )
        return Reference(asked, _answers(path, arrays, meta), meta["group_norm_eps"], meta["tokenizer"], meta["note"])
    except KeyError as error:
        raise WorkerError(f"{path.name} lacks {error}; it was not written by the reference task") from None


def _answers(path: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Answers:
    try:
        continuations = tuple(tuple(row) for row in meta["continuations"])
        return Answers(arrays["logits"], arrays["losses"], continuations, meta.get("proof"))
    except KeyError as error:
        raise WorkerError(f"{path.name} lacks {error}") from None


def losses_of(logits: Array, targets: NDArray[np.integer[Any]]) -> Array:
    """-log softmax(logits)[target] of each row, in nats: logits [T, V], targets [T]; computed in float64."""
    wide = logits.astype(np.float64)
    top = wide.max(1)
    total = np.log(np.exp(wide - top[:, None]).sum(1)) + top
    return np.asarray(total - wide[np.arange(len(targets)), targets], np.float32)
