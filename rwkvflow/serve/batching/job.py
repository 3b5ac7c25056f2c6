"""One text that a model is asked to read and to go on with, and what is told about it while it comes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.choosing import Bits, Chooser, Rating
from rwkvflow.engine.sampling import Sampling
from rwkvflow.engine.session import END, Decoder, TokenizerLike, stop_at

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """A token of an answer. Log-probabilities are the model's own, natural, before temperature and penalties.

    `top`: the likeliest tokens and theirs, as many as were asked for. Empty, and `logprob` 0, where nobody asked.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Read:
    """The prompt has been read; `cached` of its tokens were not read again."""

    cached: int


@dataclass(frozen=True)
class Piece:
    """Text that will not be taken back, whole characters only, and the tokens that begin in it."""

    text: str
    tokens: tuple[Chosen, ...]


@dataclass(frozen=True)
class Done:
    """The end. `finish`: "stop" (a stop text, the end of the text, or of what a grammar allows) or "length".

    `state` and `logits` are those after the prompt, and `hidden` its last vector, where they were asked for.
    """

    finish: str
    prompt: int
    generated: int
    cached: int
    state: Floats | None = None
    logits: Floats | None = None
    hidden: Floats | None = None


@dataclass(frozen=True)
class Failed:
    """No answer comes, or no more of it. `closing`: because the server ends, else because of `message`."""

    message: str
    closing: bool = False


Event = Read | Piece | Done | Failed


class Grammar(Protocol):
    """What tokens may come next."""

    def allowed(self) -> Bits:
        """A bit for each id, at least one of them set. Raises ValueError where none would be."""

    def take(self, token: int) -> bool:
        """The text goes on with it. False where the text is complete with it."""


@dataclass(frozen=True)
class First:
    """A state to begin with in place of a fresh one. `key` says which it is; `logits` are those after it, if known."""

    key: Hashable
    state: Floats
    logits: Floats | None = None


@dataclass(eq=False)
class TextJob:
    """What is asked. Not changed once it was handed over, but for `cancelled`, which any thread may set.

    prompt    tokens; with `first` it may be empty, where that has logits
    ends      after how many tokens of the prompt its parts end: places to go back to when it changes behind them
    after     a job with the same prompt, which is read once for both
    keep      whether the state after the prompt is asked for; `embed`: whether its last hidden vector is
    """

    prompt: Sequence[int]
    sink: Callable[[Event], None]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    most: int = 16
    stops: tuple[str, ...] = ()
    end: int | None = END
    bias: Mapping[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None
    logprobs: int | None = None
    ends: Sequence[int] = ()
    first: First | None = None
    after: TextJob | None = None
    keep: bool = False
    embed: bool = False
    cancelled: bool = False
    was_read: bool = False  # set by the scheduler: the prompt was, or will never be


class AnswerWriter:
    """The answer to a job as its tokens are chosen: text in whole characters, without the stop texts."""

    def __init__(
        self, job: TextJob, tokenizer: TokenizerLike, chooser: Chooser, exist: NDArray[np.bool_] | None = None
    ) -> None:
        """`exist`: [n_vocab], which ids have a token; None: all."""
        self.job = job
        self.sampler = chooser.sampler(job.sampling, job.seed, exist, job.bias)
        self.generated = 0
        self.finish: str | None = "length" if job.most <= 0 else None
        self._decoder = Decoder(tokenizer)
        self._held = ""  # may be the beginning of a stop text
        self._cut = False  # a stop text came
        self._given = self._decoded = 0  # characters
        self._tokens: list[tuple[int, Chosen]] = []  # where each begins that is not given out yet

    def allowed(self) -> Bits | None:
        """Which tokens may come next; None: all that there are. Raises ValueError where a grammar allows none."""
        return None if self.job.grammar is None else self.job.grammar.allowed()

    def take(self, token: int, rating: Rating = (0.0, ())) -> int | None:
        """The next token, which was chosen by `sampler`, and how likely it is where the job asks; None at an end."""
        job = self.job
        if token == job.end:
            self.finish = "stop"
            return None
        self.generated += 1
        chosen = Chosen(token, *rating)
        self._tokens.append((self._decoded, chosen))
        text = self._decoder.put(token)
        self._decoded += len(text)
        self._held += text
        if job.grammar is not None and not job.grammar.take(token):
            self.finish = "stop"
        found, _ = stop_at(self._held, job.stops)
        if found is not None:
            self._held = self._held[:found]
            self.finish, self._cut = "stop", True
            self._tokens = [entry for entry in self._tokens if entry[0] < self._given + found]
        elif self.finish is None and self.generated >= job.most:
            self.finish = "length"
        return token

    def ready(self) -> Piece | None:
        """What can be given out now."""
        if self.finish is not None:
            # Where a stop text ended it, what the last token began behind that is none of the answer.
            text = self._held if self._cut else self._held + self._decoder.end()
            self._held, tokens = "", tuple(chosen for _, chosen in self._tokens)
            self._tokens = []
            self._given += len(text)
            return Piece(text, tokens) if text or tokens else None
        _, keep = stop_at(self._held, self.job.stops)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._given += len(text)
        tokens = tuple(chosen for at, chosen in self._tokens if at < self._given)
        self._tokens = [entry for entry in self._tokens if entry[0] >= self._given]
        return Piece(text, tokens) if text else None
