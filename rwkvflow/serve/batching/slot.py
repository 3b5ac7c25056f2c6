"""One text that a scheduler works on: how far it was read, its state, and what of it comes next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Model
from rwkvflow.engine.choosing import Chooser, Rating
from rwkvflow.engine.drafts import Follower, GuessPace, Lookup
from rwkvflow.engine.session import END, TokenizerLike
from rwkvflow.serve.batching.cache import Snapshot, StateCache
from rwkvflow.serve.batching.job import AnswerWriter, Done, Event, Floats, Read, TextJob


@dataclass
class Chunk:
    """What of a text is evaluated in one pass. `logits` and `hidden` number its tokens; `out` has a place for each."""

    tokens: Sequence[int]
    state: Floats | None
    out: list[Floats | None]
    logits: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    guesses: Sequence[int] = ()
    snapshots: list[tuple[int, Floats]] = field(default_factory=list)  # tokens of the text, and the state after them


class SequenceSlot:
    """For the scheduler's thread only."""

    def __init__(
        self,
        job: TextJob,
        model: Model,
        tokenizer: TokenizerLike,
        cache: StateCache,
        chooser: Chooser,
        *,
        lookup: bool,
        guesses: int,
        exist: NDArray[np.bool_] | None = None,
    ) -> None:
        """`guesses`: at most so many tokens are guessed ahead; `lookup`: from the text so far.

        `exist`: [n_vocab], which ids have a token; None: all.
        """
        self.job, self.started = job, time.monotonic()
        self.writer = AnswerWriter(job, tokenizer, chooser, exist)
        self.follower = Follower()
        self.guesses: list[int] = []
        self.may_guess = True  # in the next pass
        self.kept = 0  # guesses of the last pass that were right
        self.row: Floats | None = None  # logits that the next token is to be chosen from
        self._rows: Floats | None = None  # of the last pass, where it had more than a prompt's
        self._part = Chunk((), None, [])  # of the last pass
        # A text begins after something: with nothing read, as after the end of another one.
        self.tokens: list[int] = list(job.prompt) or ([] if job.first and job.first.logits is not None else [END])
        self._prompt = len(self.tokens)
        self._done = 0  # tokens that the state has read
        self._key = None if job.first is None else job.first.key
        self._cache, self._model = cache, model
        self._state: Floats | None = None  # this slot's own, written over; None: fresh
        self._spare: list[Floats] = []
        self._cached = 0
        self.begun = False
        self._after: tuple[Floats | None, Floats | None] = (None, None)  # state and logits after the prompt
        self._hidden: Floats | None = None
        self._lookup = Lookup() if lookup else None
        self._pace = GuessPace(guesses)

    @property
    def reading(self) -> bool:
        """Whether its prompt has not been read to the end."""
        return self._done < self._prompt

    @property
    def generated(self) -> int:
        """Tokens that were chosen."""
        return self.writer.generated

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.begun and not self.reading and self.writer.finish is not None

    # ---- before a pass -----------------------------------------------------------------------------------------------

    def begin(self) -> Iterator[Event]:
        """Once: goes to where the cache knows the text. Yields what there is to tell where that is all of it."""
        if self.begun:
            return
        self.begun = True
        job = self.job
        # Nothing of whoever had this place before is left: the state is fresh, the one that was asked for, or a copy.
        if job.first is not None:
            self._state = job.first.state.copy()
        found = None if job.embed else self._cache.find(self._key, self.tokens)
        logits = None
        if found is not None:
            self._state, self._done, self._cached, logits = found.state.copy(), found.length, found.length, found.logits
        elif not self.tokens and job.first is not None:
            logits = job.first.logits
        if not self.reading:
            yield Read(self._cached)
            if logits is not None:
                self._prompt_read(logits)

    def room_for_guesses(self) -> int:
        """How many tokens to guess now."""
        left = self.job.most - self.generated - 1
        return 0 if self.reading or self.over or not self.may_guess else max(0, min(self._pace.next(), left))

    def next_part(self, share: int) -> Chunk:
        """Up to `share` tokens of the prompt, or the last token and guesses behind it."""
        if self.reading:
            return self._part_of_prompt(share)
        last = self.tokens[-1]
        guesses: list[int] = self.guesses
        if self._lookup is not None and not guesses:
            guesses = self._lookup.guess(self.room_for_guesses())
        self.guesses = []
        out: list[Floats | None] = [self._buffer() for _ in guesses]
        own = self._state if self._state is not None else self._buffer()
        return Chunk([last, *guesses], self._state, [*out, own], list(range(len(guesses) + 1)), guesses=guesses)

    def _part_of_prompt(self, share: int) -> Chunk:
        begin, end = self._done, min(self._prompt, self._done + share)
        own = self._state if self._state is not None else self._buffer()
        part = Chunk(self.tokens[begin:end], self._state, [None] * (end - begin - 1) + [own])
        for place in self.job.ends:
            if begin < place < end and self._wants(place):
                state = part.out[place - begin - 1] = np.empty(self._model.state_len, np.float32)
                part.snapshots.append((place, state))
        if end == self._prompt and (self.job.most > 0 or self.job.keep):
            part.logits = [end - begin - 1]
        if end == self._prompt and self.job.embed:
            part.hidden = [end - begin - 1]
        return part

    def _wants(self, place: int, *, logits: bool = False) -> bool:
        return (
            self._cache.limit > 0
            and not self.job.embed
            and not self._cache.has(self._key, self.tokens[:place], logits=logits)
        )

    def _buffer(self) -> Floats:
        return self._spare.pop() if self._spare else np.empty(self._model.state_len, np.float32)

    # ---- after a pass ------------------------------------------------------------------------------------------------

    def took(self, part: Chunk, logits: Floats, hidden: Floats | None) -> Iterator[Event]:
        """The pass is done; logits [len(part.logits), n_vocab]. A token is to be chosen where there is a `row` then."""
        self.kept = 0
        if not self.reading:
            self._part, self._rows, self.row = part, logits, logits[0]
            return
        self._done += len(part.tokens)
        self._state = part.out[-1]
        for place, state in part.snapshots:
            self._cache.put(self._key, self.tokens[:place], Snapshot(place, state))
        if self.reading:
            if self._done in self.job.ends and self._wants(self._done):
                self._snapshot(None)
            return
        self._hidden = hidden
        if len(logits) and self._wants(self._prompt, logits=True):
            self._snapshot(logits[0].copy())
        yield Read(self._cached)
        if len(logits):
            self._prompt_read(logits[0])

    def _prompt_read(self, logits: Floats) -> None:
        if self._lookup is not None:
            self._lookup.read(self.tokens)
        if self.job.keep and self._state is not None:
            self._after = (self._state.copy(), logits.copy())
        self.job.was_read = True
        if self.writer.finish is None:
            self.row = logits

    def chose(self, token: int, rating: Rating = (0.0, ())) -> None:
        """The token that was chosen from `row`, and how likely it is where the job asks; there may be another row then.

        Guesses are kept as far as they are what is chosen anyway; the state goes back to that after the last one kept.
        """
        self._chose(self.writer.take(token, rating))
        if self._rows is None:
            self.row = None
            return
        guesses = self._part.guesses
        if self.writer.finish is None and self.kept < len(guesses) and token == guesses[self.kept]:
            self.kept += 1
            self.row = self._rows[self.kept]
            return
        out, at = self._part.out, self.kept
        self._pace.was_right(len(guesses), at)
        self._done += at + 1
        self._state = out[at]
        self._spare = [*self._spare, *(s for i, s in enumerate(out) if i != at and s is not None)]
        self.row = self._rows = None

    def _chose(self, token: int | None) -> None:
        if token is not None:
            self.tokens.append(token)
            if self._lookup is not None:
                self._lookup.read([token])

    def _snapshot(self, logits: Floats | None) -> None:
        if self._state is not None:
            snapshot = Snapshot(self._done, self._state.copy(), logits)
            self._cache.put(self._key, self.tokens[: self._done], snapshot)

    def end(self) -> Done:
        """Leaves the state for a text that goes on from here. To be called once, and nothing after it."""
        self.job.was_read = True
        if self._state is not None and self._done > self._prompt and self._wants(self._done):
            self._cache.put(self._key, self.tokens[: self._done], Snapshot(self._done, self._state))
        state, logits = self._after
        prompt = len(self.job.prompt)
        return Done(self.writer.finish or "length", prompt, self.generated, self._cached, state, logits, self._hidden)
