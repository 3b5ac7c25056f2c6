"""What smoke asks of a model, and what came back; as files of named arrays, the same bytes for equal content."""

from __future__ import annotations

import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError

Array = NDArray[np.float32]
TEXT_TOKENS = 512  # of the text, for the perplexity
LOGIT_TOKENS = 64  # of the text, after which all logits are compared
EQUAL_TOKENS = 16  # of the text, for an artifact that holds the checkpoint's own values
TRUTH_BYTES = 1 << 28  # of the reference's logits that are kept, for the divergence: all 512 rows of 131,072
LOCAL_HEADER = 30  # bytes of a member's own header in a ZIP file, before its name


@dataclass(frozen=True)
class Questions:
    """Token ids, so that nothing that answers needs a tokenizer.

    text     at least two tokens; the model predicts each from those before it
    logits   after so many of them, at most len(text), all logits are kept
    prompts  each with at least one token, continued greedily by `tokens`
    truth    the reference's logits [n, V] after the first n tokens, from which the divergence is reckoned, if at all
    nameless ids that the tokenizer has no token for, which no continuation chooses
    speed    whether tokens of the text are timed
    deferred whether figures are reckoned only of tokens whose logits are not kept: the judge reckons the others
    equal    tokens of the text that are enough of an artifact whose tensors are the checkpoint's; None: all
    """

    text: tuple[int, ...]
    logits: int
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    truth: Array | None = field(default=None, compare=False, repr=False)
    speed: bool = False
    deferred: bool = False
    nameless: tuple[int, ...] = ()
    equal: int | None = None

    def of_equal(self) -> Questions:
        """What is asked of an artifact with equal tensors that only our forward pass runs: see formats.equal."""
        if self.equal is None:
            return self
        text = self.text[: self.equal]
        return replace(self, text=text, logits=min(self.logits, len(text)), prompts=())

    def likeliest(self, logits: NDArray[Any]) -> int:
        """The likeliest id of logits [V] that has a token, of equals the lowest."""
        if self.nameless:
            logits = logits.copy()
            logits[list(self.nameless)] = -np.inf
        return int(logits.argmax())


@dataclass(frozen=True)
class DecodePace:
    """How fast single tokens were read: the median over `tokens` of them. threads: None where it is not known."""

    tokens_per_second: float
    tokens: int
    threads: int | None


@dataclass(frozen=True)
class Answers:
    """What a model says, over a text of T tokens.

    logits         [n, V] after each of the first n tokens
    losses         [T-1] in nats: -log p of each token but the first
    likeliest      [T] the token that it holds most likely after each; the lowest of several
    continuations  token ids
    note           what the report should say of how they came about; None where the consumer simply ran the artifact
    divergence     [m] in nats: KL(reference || this) after each of the first m tokens; None without a reference
    runtime        whether the artifact's own runtime computed them, or our forward pass over what it holds
    """

    logits: Array
    losses: Array
    likeliest: NDArray[np.int32]
    continuations: tuple[tuple[int, ...], ...]
    note: str | None = None
    divergence: NDArray[np.float64] | None = None
    runtime: bool = True
    pace: DecodePace | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(np.exp(np.mean(self.losses, dtype=np.float64)))


@dataclass(frozen=True)
class SmokeReference:
    """The questions, the reference's answers, and how tokens become text ("kind" and note of the tokenizer).

    square, residual and block are the largest magnitudes that it came to, as rwkvflow.worker.reference.model.Peaks has
    them, and n_ffn is how many values the feed-forward squares for a token.
    The answers' logits are those of more tokens than the questions ask for: as many as TRUTH_BYTES hold.
    """

    questions: Questions
    answers: Answers
    group_norm_eps: float | None
    tokenizer: str
    note: str | None
    square: float = 0.0
    residual: float = 0.0
    block: float = 0.0
    n_ffn: int = 0

    @property
    def judged(self) -> Questions:
        """The questions beside the reference's logits: for whoever reckons, and for nobody who answers."""
        return replace(self.questions, truth=self.answers.logits)

    def of_equal(self) -> SmokeReference:
        """The same as far as artifacts with equal tensors are asked."""
        asked, answers = replace(self.questions, equal=EQUAL_TOKENS).of_equal(), self.answers
        count = len(asked.text)
        logits, losses, likeliest = answers.logits[:count], answers.losses[: count - 1], answers.likeliest[:count]
        brief = replace(answers, logits=logits, losses=losses, likeliest=likeliest, continuations=())
        return replace(self, questions=asked, answers=brief)


# What reading an .npz of anybody's ends in: zipfile's, zlib's and numpy's own, which parses the header of an array.
DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(SyntaxError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, NotImplementedError),
)


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """An .npz (np.load reads it) with fixed dates, in the order given; meta as JSON in the array "meta"."""
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
    arrays = {**arrays, "meta": np.frombuffer(text, np.uint8)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read_arrays(path: Path, mapped: str = "") -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """`mapped` names an array that is not read but mapped. Raises WorkerError for a file of other origin."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files if name != mapped}
        meta = json.loads(arrays.pop("meta").tobytes())
        if mapped:
            arrays[mapped] = _map(path, f"{mapped}.npy")
    except DAMAGED as error:
        raise WorkerError(f"{path.name} is damaged or not a file of smoke results: {error}") from None
    return arrays, meta


def _map(path: Path, member: str) -> NDArray[Any]:
    """A member of an .npz that is not compressed, as numpy maps files; read-only."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member} is compressed")
        archive.open(info).close()  # checks the local header, which the lengths below are from
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        file.seek(name + extra, os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start, nbytes = file.tell(), dtype.itemsize * math.prod(shape)
        end = info.header_offset + LOCAL_HEADER + name + extra + info.file_size
        if fortran or dtype.hasobject or start + nbytes > end:
            raise ValueError(f"{member} is not as it was written")
    return np.memmap(path, dtype, "r", start, shape)


def _arrays(answers: Answers) -> dict[str, NDArray[Any]]:
    return {"logits": answers.logits, "losses": answers.losses, "likeliest": answers.likeliest}


def write_answers(path: Path, answers: Answers) -> None:
    """Answers alone."""
    arrays = _arrays(answers)
    if answers.divergence is not None:
        arrays["divergence"] = answers.divergence
    meta = {"continuations": answers.continuations, "proof": answers.note, "runtime": answers.runtime}
    write_arrays(path, arrays, {**meta, "pace": None if answers.pace is None else asdict(answers.pace)})


def read_answers(path: Path, *, mapped: bool = False) -> Answers:
    """Reverse of write_answers; `mapped`: the logits are a memory map."""
    arrays, meta = read_arrays(path, "logits" if mapped else "")
    return _answers(path, arrays, meta)


def write_questions(path: Path, reference: SmokeReference) -> None:
    """What an artifact is asked, as JSON: nothing of what the reference says but how many logits are wanted."""
    asked = reference.questions
    content = {
        "text": asked.text,
        "logits": len(reference.answers.logits),
        "prompts": asked.prompts,
        "tokens": asked.tokens,
        "group_norm_eps": reference.group_norm_eps,
        "nameless": asked.nameless,
    }
    path.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")


def read_questions(path: Path, *, speed: bool) -> tuple[Questions, float | None]:
    """The questions and the epsilon of the group norm. Raises WorkerError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple(tuple(row) for row in content["prompts"])
        nameless = tuple(content["nameless"])
        asked = Questions(tuple(content["text"]), content["logits"], prompts, content["tokens"], nameless=nameless)
        eps: float | None = content["group_norm_eps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkerError(f"{path.name} was not written by the reference task: {error}") from None
    return replace(asked, speed=speed, deferred=True, equal=EQUAL_TOKENS), eps


def write_reference(path: Path, reference: SmokeReference) -> None:
    """The reference step's output."""
    asked, answers = reference.questions, reference.answers
    meta = {
        "text": asked.text,
        "logits": asked.logits,
        "prompts": asked.prompts,
        "tokens": asked.tokens,
        "nameless": asked.nameless,
        "continuations": answers.continuations,
        "group_norm_eps": reference.group_norm_eps,
        "tokenizer": reference.tokenizer,
        "note": reference.note,
        "peaks": [reference.square, reference.residual, reference.block, reference.n_ffn],
    }
    write_arrays(path, _arrays(answers), meta)


def read_reference(path: Path) -> SmokeReference:
    """Reverse of write_reference; the logits are a memory map."""
    arrays, meta = read_arrays(path, "logits")
    try:
        asked = Questions(
            tuple(meta["text"]),
            meta["logits"],
            tuple(tuple(row) for row in meta["prompts"]),
            meta["tokens"],
            nameless=tuple(meta["nameless"]),
        )
        told = (meta["group_norm_eps"], meta["tokenizer"], meta["note"], *meta["peaks"])
        return SmokeReference(asked, _answers(path, arrays, meta), *told)
    except KeyError as error:
        raise WorkerError(f"{path.name} lacks {error}; it was not written by the reference task") from None


def _answers(path: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Answers:
    try:
        return Answers(
            arrays["logits"],
            arrays["losses"],
            arrays["likeliest"],
            tuple(tuple(row) for row in meta["continuations"]),
            meta.get("proof"),
            arrays.get("divergence"),
            bool(meta.get("runtime", False)),
            DecodePace(**pace) if (pace := meta.get("pace")) else None,
        )
    except KeyError as error:
        raise WorkerError(f"{path.name} lacks {error}") from None
