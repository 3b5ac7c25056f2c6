"""Guessing ahead: which tokens may come next, from the text so far or from a smaller model.

A guess is checked by the model that is asked: its tokens are read in one pass, and kept as far as they are what would
have been chosen anyway. So guesses change how fast a text comes and never what it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Model
from rwkvflow.engine.choosing import TextSampler, chooser_of
from rwkvflow.engine.errors import EngineError

Floats = NDArray[np.float32]
GRAMS = (4, 2)  # tokens of the end of the text that are looked up in it, the longer one first
REST = 64  # tokens without a guess, at most, after guesses that were wrong
FADING = 0.9  # what an older pass counts for, against the one after it
PLAIN_EVERY = 32  # passes, of which one is without guesses
TRIAL = 8  # passes with guesses until it is judged whether they pay
SHORTEST_REST, LONGEST_REST = 32, 512  # passes without, where they do not
CATCH_UP = 256  # tokens of a text that a smaller model reads before it is asked again


class Lookup:
    """Guesses from the text itself: what stood behind the last few tokens when they stood there before."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # Where each run of tokens ended: the last time, and the time before; 0 where there was none.
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}

    def read(self, tokens: Sequence[int]) -> None:
        """The text goes on with these."""
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for size in GRAMS:
                if end >= size:
                    gram = tuple(self._tokens[-size:])
                    self._places[gram] = (end, self._places.get(gram, (0, 0))[0])

    def guess_behind(self, last: int, most: int) -> list[int]:
        """The same where `last` comes next, and was not read yet."""
        for size in GRAMS:
            if len(self._tokens) >= size - 1:
                end, _ = self._places.get((*self._tokens[len(self._tokens) - size + 1 :], last), (0, 0))
                if end:
                    return [*self._tokens, last][end : end + most]
        return []

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens."""
        for size in GRAMS:
            if len(self._tokens) > size:
                _, before = self._places[tuple(self._tokens[-size:])]
                if before:
                    return self._tokens[before : before + most]
        return []


@dataclass
class GuessPace:
    """How many tokens to guess: more while guesses are right, fewer and less often while they are not."""

    most: int
    now: int = 0
    resting: int = 0
    _rest: int = 1

    def __post_init__(self) -> None:
        self.now = self.most

    def next(self) -> int:
        """How many to guess this time; 0 while it rests."""
        if self.resting:
            self.resting -= 1
            return 0
        return self.now

    def was_right(self, guessed: int, kept: int) -> None:
        """So many of the guessed tokens were kept."""
        if guessed == 0:
            return
        if kept == 0:
            self.now = max(1, self.now // 2)
            self.resting, self._rest = self._rest, min(REST, 2 * self._rest)
        else:
            self._rest = 1
            self.now = min(self.most, self.now + 1) if kept == guessed else max(1, kept + 1)
            self.now = min(self.most, self.now)


@dataclass
class Payoff:
    """Whether guessing ahead pays: what a token takes in passes with guesses, against passes without.

    Off when it does not, and tried again after a while, which grows. Time decides when a text comes, never what it is.
    """

    resting: int = 0  # passes without guesses that are still to come
    _rest: int = SHORTEST_REST
    _passes: int = 0
    _tried: int = -1  # passes with guesses since the last rest, but the first, in which a smaller model catches up
    # (texts in the pass, whether with guesses) → seconds and tokens, older ones counting less and less
    _spent: dict[tuple[int, bool], tuple[float, float]] = field(default_factory=dict)

    def pays(self, texts: int) -> bool:
        """Whether to guess in the next pass, over so many texts."""
        self._passes += 1
        if self.resting:
            self.resting -= 1
            return False
        # Now and then a pass without, so that it is known what that takes.
        return (texts, False) in self._spent and self._passes % PLAIN_EVERY != 0

    def took(self, texts: int, guessed: bool, tokens: int, seconds: float) -> None:
        """A pass that only wrote chose so many tokens in all."""
        if guessed:
            self._tried += 1
            if self._tried == 0:
                return
        before, count = self._spent.get((texts, guessed), (0.0, 0.0))
        self._spent[texts, guessed] = (FADING * before + seconds, FADING * count + tokens)
        if not guessed:
            return
        ahead, plain = self._cost(texts, True), self._cost(texts, False)
        if ahead is None or plain is None or self._tried < TRIAL:
            return
        if ahead < plain:
            self._rest = SHORTEST_REST
        else:
            self.resting, self._rest, self._tried = self._rest, min(LONGEST_REST, 2 * self._rest), -1
            self._spent = {key: spent for key, spent in self._spent.items() if not key[1]}

    def _cost(self, texts: int, guessed: bool) -> float | None:
        seconds, tokens = self._spent.get((texts, guessed), (0.0, 0.0))
        return seconds / tokens if tokens else None


@dataclass
class Follower:
    """What a smaller model has read of one text. `read`: how many of its tokens; `state` is that after them."""

    read: int = 0
    state: Floats | None = None
    ahead: list[Floats] = field(default_factory=list)  # the states after each of the tokens that it guessed from


class SmallModel:
    """Guesses of a smaller model with the same vocabulary. For the thread that owns it."""

    def __init__(self, model: Model) -> None:
        """Raises EngineError where the library cannot evaluate several sequences together."""
        if not model.library.takes_sequences:
            raise EngineError(f"{model.library.path.name} cannot evaluate several sequences together")
        self.model, self._chooser = model, chooser_of(model)

    def guess(self, texts: Sequence[tuple[Follower, Sequence[int], TextSampler, int]]) -> list[list[int]]:
        """For each (what it read, all tokens so far, who will choose, how many): tokens that may come next.

        A copy of whoever will choose chooses here as well, so that chance falls alike. One that has much to read yet
        guesses nothing. Raises EngineError.
        """
        out: list[list[int]] = [[] for _ in texts]
        self._catch_up([(follower, tokens) for follower, tokens, _, _ in texts])
        samplers = [sampler.copy() for _, _, sampler, _ in texts]
        last = [tokens[-1] for _, tokens, _, _ in texts]
        turn = [i for i, (f, tokens, _, most) in enumerate(texts) if most and f.read == len(tokens) - 1]
        while turn:
            states = [texts[i][0].ahead[-1] if texts[i][0].ahead else texts[i][0].state for i in turn]
            fresh = [np.empty(self.model.state_len, np.float32) for _ in turn]
            logits, _ = self.model.eval_batch([last[i] for i in turn], states, fresh)
            chosen = self._chooser.choose([samplers[i] for i in turn], list(logits), [None for _ in turn])
            for i, state, token in zip(turn, fresh, chosen, strict=True):
                texts[i][0].ahead.append(state)
                if token is not None:  # logits that are not finite guess nothing
                    last[i] = token
                    out[i].append(token)
            turn = [i for i in turn if len(texts[i][0].ahead) == len(out[i]) < texts[i][3]]
        return out

    def went_on(self, follower: Follower, kept: int) -> None:
        """So many of its guesses were kept, and one more token was chosen."""
        if follower.ahead:
            used = min(kept + 1, len(follower.ahead))
            follower.state = follower.ahead[used - 1]
            follower.read += used
            follower.ahead = []

    def _catch_up(self, texts: Sequence[tuple[Follower, Sequence[int]]]) -> None:
        sequences, states, out, todo = [], [], [], []
        for follower, tokens in texts:
            missing = list(tokens[follower.read : -1][:CATCH_UP])
            if not missing:
                continue
            state = follower.state if follower.state is not None else np.empty(self.model.state_len, np.float32)
            sequences.append(missing)
            states.append(follower.state)
            out += [None] * (len(missing) - 1) + [state]
            todo.append((follower, state, len(missing)))
        if sequences:
            self.model.eval_sequences(sequences, states, out, ())
        for follower, state, count in todo:
            follower.state = state
            follower.read += count


class Guesser:
    """Guesses for one text: of a smaller model, or without one from the text itself."""

    def __init__(self, most: int, small: SmallModel | None = None) -> None:
        """`most`: at most so many tokens are guessed at once."""
        self.guessed = self.kept = 0
        self._small, self._pace, self._payoff = small, GuessPace(most), Payoff()
        self._since: float | None = None  # when the last guess was asked for
        self._lookup = Lookup()
        self._follower = Follower()
        self._tokens: list[int] = []
        self._asked = self._right = 0  # of the last guess

    def read(self, tokens: Sequence[int]) -> None:
        """The text goes on with these."""
        if len(tokens) > 1:  # a prompt
            self._since = None
        self._tokens += tokens
        self._lookup.read(tokens)

    def was_right(self) -> None:
        """One more token of the last guess was what was chosen."""
        self._right += 1

    def guess(self, last: int, sampler: TextSampler, most: int) -> list[int]:
        """Up to `most` tokens that may come behind `last`, which is read with them. Raises EngineError."""
        self._pace.was_right(self._asked, self._right)
        self.guessed += self._asked
        self.kept += self._right
        if self._small is not None:
            self._small.went_on(self._follower, self._right)
            if self._follower.read > len(self._tokens):  # the text went back
                self._follower = Follower()
        now = time.perf_counter()
        if self._since is not None:
            self._payoff.took(1, self._asked > 0, self._right + 1, now - self._since)
        self._since = now
        self._asked = self._right = 0
        count = min(self._pace.next(), most) if self._payoff.pays(1) else 0
        if count <= 0:
            return []
        if self._small is not None:
            (found,) = self._small.guess([(self._follower, [*self._tokens, last], sampler, count)])
        else:
            found = self._lookup.guess_behind(last, count)
        self._asked = len(found)
        return found

    def drop(self, count: int) -> None:
        """The last `count` tokens that were read are none of the text any more."""
        del self._tokens[max(0, len(self._tokens) - count) :]
        self._asked = self._right = 0
        self._follower = Follower()
