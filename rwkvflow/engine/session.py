"""Text from a model, piece by piece as it comes; states that are saved and gone on from."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Model
from rwkvflow.engine.choosing import TextSampler, chooser_of
from rwkvflow.engine.drafts import Guesser
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.prompts import ASSISTANT, BLANK, STOPS, SYSTEM, USER, clean, opening
from rwkvflow.engine.sampling import Sampling, existing
from rwkvflow.engine.states import SavedState, fingerprint, read_state, write_state

Floats = NDArray[np.float32]
END = 0  # the id that ends a text, in every vocabulary of RWKV
WINDOW = 32  # tokens that are decoded together where a tokenizer cannot tell the bytes of one
REPLACEMENT = "\ufffd"
PATIENCE = 8  # tokens; no character has more than four bytes


class TokenizerLike(Protocol):
    """Text to ids and back. One with `piece(token) -> bytes` streams best."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; what is not UTF-8 becomes U+FFFD."""


class Decoder:
    """Tokens to text without ever cutting a character in two."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._piece: Callable[[int], bytes] | None = getattr(tokenizer, "piece", None)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tokens: list[int] = []
        self._read = 0  # how many of them are in what was given out

    def put(self, token: int) -> str:
        """The text that this token completes, often ""."""
        if self._piece is not None:
            return self._utf8.decode(self._piece(token))
        self._tokens.append(token)
        text = self._fresh()
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._read < PATIENCE:
            return ""
        self._read = len(self._tokens)
        if self._read > WINDOW:
            self._tokens = self._tokens[-WINDOW // 2 :]
            self._read = len(self._tokens)
        return text

    @property
    def waiting(self) -> bool:
        """Whether the last tokens are a part of a character."""
        if self._piece is not None:
            return bool(self._utf8.getstate()[0])
        return self._read < len(self._tokens)

    def end(self) -> str:
        """What is left: a character that was never completed becomes U+FFFD."""
        if self._piece is not None:
            text = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            return text
        text = self._fresh()
        self._read = len(self._tokens)
        return text

    def _fresh(self) -> str:
        # Spaces and the like depend on what stands before, so the tokens before are decoded along.
        before = self._tokenizer.decode(self._tokens[: self._read])
        return self._tokenizer.decode(self._tokens)[len(before) :]


def stop_at(text: str, stops: Sequence[str]) -> tuple[int | None, int]:
    """(where the first stop string begins or None, how many characters at the end may be the beginning of one)."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    if places:
        return min(places), 0
    most = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), most, -1):
            if text.endswith(stop[:length]):
                most = length
                break
    return None, most


class Session:
    """A model that reads and writes one text. Not for several threads.

    `finish` says how the last `generate` ended: "stop" (a stop string), "end" (the model ended the text), "length";
    None while it runs. `evaluated` and `generated` count tokens.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: TokenizerLike,
        sampling: Sampling | None = None,
        seed: int = 0,
        guesser: Guesser | None = None,
    ) -> None:
        """`guesser`: guesses ahead, which changes how fast a text comes, and nothing else.

        Raises ValueError for a seed that is none.
        """
        self.model, self.tokenizer = model, tokenizer
        exist = existing(tokenizer, model.n_vocab)
        self.sampler: TextSampler = chooser_of(model).sampler(sampling or Sampling(), seed, exist)
        self.finish: str | None = None
        self.evaluated = self.generated = 0
        self._reached: tuple[Floats, Floats] | None = None  # logits and state; the state is written over
        self._first: Floats | None = None  # what a text begins with, in place of a fresh state
        self._unread = ""  # belongs to the text, and the model has not read it yet
        self._pending: list[int] = []  # so do these
        self._guesser = guesser
        self._ahead: list[tuple[int, Floats, Floats]] = []  # guesses that were read, logits and state after each

    # ---- reading -----------------------------------------------------------------------------------------------------

    def feed(self, text: str) -> int:
        """Let the model read on; the number of tokens. Raises EngineError."""
        text, self._unread = self._unread + text, ""
        return self.feed_tokens(self.tokenizer.encode(text)) if text else 0

    def feed_tokens(self, tokens: Iterable[int]) -> int:
        """Read tokens that are given by their ids."""
        fresh = list(tokens)
        todo, self._pending = [*self._pending, *fresh], []
        state = self._reached[1] if self._reached else self._begun()
        if todo and self._guesser is not None:
            self._guesser.read(todo)
            self._ahead = []
        if len(todo) == 1:
            self._reached = self.model.eval(todo[0], state, state)
        elif todo:
            self._reached = self.model.eval_sequence(todo, state, state)
        self.evaluated += len(todo)
        return len(fresh)

    def begin(self, state: Floats) -> None:
        """The text begins with this state, such as one that was trained for it, as it does after `reset`."""
        self.reset()
        self._first = state

    def _begun(self) -> Floats | None:
        return None if self._first is None else self._first.copy()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def generate(self, max_tokens: int = 256, stops: Sequence[str] = (), end: int | None = END) -> Iterator[str]:
        """Pieces of text as they come, whole characters only. Stop strings are not part of it.

        After a stop string the model has read the text up to it and not the string, so that `feed` goes on from there.
        Raises EngineError, ValueError for logits that are not finite.
        """
        stops = [stop for stop in stops if stop]
        self.finish = None
        self.feed("")
        if self._reached is None and not self._pending:
            self.feed_tokens([END])  # nothing was read: the beginning of a text
        decoder = Decoder(self.tokenizer)
        held = ""  # may be the beginning of a stop string
        mark: _StateMark | None = None  # before the first token of what is held
        for left in range(max_tokens, 0, -1):
            if self._guesser is not None:
                self._read_ahead(self._guesser, left - 1)
            logits, state = self._now()
            token = self.sampler.choose(logits)
            if token == end:
                self.finish = "end"
                break
            self.generated += 1
            mark = mark or _StateMark(logits, state, self.evaluated)
            text = decoder.put(token)
            held += text
            mark.text += text
            found, keep = stop_at(held, stops)
            if found is not None:
                self._rewind(mark, len(held) - found)
                if held[:found]:
                    yield held[:found]
                self.finish = "stop"
                return
            self._pending = [token]
            if stops and (keep or decoder.waiting):
                mark.keep()
            else:
                mark = None
            ready, held = held[: len(held) - keep], held[len(held) - keep :]
            if ready:
                yield ready
        else:
            self.finish = "length"
        if rest := held + decoder.end():
            yield rest

    def _now(self) -> tuple[Floats, Floats]:
        self.feed_tokens(())
        if self._reached is None:
            raise EngineError("the model has read nothing")
        return self._reached

    def _read_ahead(self, guesser: Guesser, most: int) -> None:
        """Reads the token that was chosen last: it was guessed and read before, or is read now, with guesses."""
        if len(self._pending) != 1 or self._reached is None:
            return
        token, before = self._pending[0], self._reached[1]
        if self._ahead and self._ahead[0][0] == token:
            _, logits, state = self._ahead.pop(0)
            guesser.was_right()
        else:
            self._ahead = []
            guesses = guesser.guess(token, self.sampler, most)
            if not guesses:
                return
            states = [np.empty(self.model.state_len, np.float32) for _ in range(len(guesses) + 1)]
            rows, _ = self.model.eval_sequences([[token, *guesses]], [before], states, range(len(states)))
            self._ahead = list(zip(guesses, rows[1:], states[1:], strict=True))
            logits, state = rows[0], states[0]
        guesser.read([token])
        self._reached, self._pending = (logits, state), []
        self.evaluated += 1

    def _rewind(self, mark: _StateMark, behind: int) -> None:
        if self._guesser is not None:
            self._guesser.drop(self.evaluated - mark.evaluated)
        self._ahead = []
        self._reached, self.evaluated = (mark.logits, mark.state), mark.evaluated
        self._pending = []
        self._unread = mark.text[: len(mark.text) - behind]

    # ---- states ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the state to a file, whole or not at all. Raises EngineError, OSError."""
        self.feed("")
        logits, state = self._now()
        write_state(path, SavedState(state, logits, self.evaluated, *self._identity()))

    def load(self, path: Path) -> None:
        """Go on from a saved state. Raises EngineError for one of another model, or a damaged file."""
        saved = read_state(path, self.model.state_len, self.model.logits_len)
        version, layout, digest = self._identity()
        if (saved.layout, saved.version) != (layout, version):
            raise EngineError(
                f"{path.name}: a state of {saved.layout}, version {saved.version}; this is {layout}, version {version}"
            )
        if saved.model != digest:
            raise EngineError(f"{path.name}: a state of another model file")
        if saved.logits is None and saved.tokens == 0:
            self.begin(saved.state)
            return
        if saved.logits is None:
            raise EngineError(f"{path.name}: a state without the logits after it")
        self._reached, self.evaluated = (saved.logits, saved.state), saved.tokens
        self._pending, self._unread = [], ""

    def reset(self) -> None:
        """Forget all that was read and written, and what was chosen; the random numbers go on."""
        self._reached, self.evaluated, self.generated = None, 0, 0
        self._pending, self._unread, self.finish = [], "", None
        self._ahead = []
        self.sampler.forget()

    def _identity(self) -> tuple[str, str, bytes]:
        layout = "librwkv" if self.model.library.ours else "rwkv.cpp"
        return self.model.version or "?", layout, fingerprint(self.model.path)


class _StateMark:
    """A place to go back to. The state is copied only when it is about to be written over."""

    def __init__(self, logits: Floats, state: Floats, evaluated: int) -> None:
        self.logits, self.state, self.evaluated = logits, state, evaluated
        self.text = ""  # generated since
        self._kept = False

    def keep(self) -> None:
        if not self._kept:
            self.state = self.state.copy()
            self._kept = True


class ChatSession:
    """A conversation in the form that RWKV's models were trained on; see rwkvflow.engine.prompts."""

    def __init__(
        self, session: Session, user: str = USER, assistant: str = ASSISTANT, think: bool | None = None
    ) -> None:
        """`think`: whether answers begin with a thought; None leaves it to the model."""
        self.session, self.user, self.assistant, self.think = session, user, assistant, think
        self.begun = session.evaluated > 0

    def system(self, text: str) -> None:
        """Something to read before the first question."""
        self._say(f"{SYSTEM}: {clean(text)}")

    def ask(self, text: str, max_tokens: int = 1024, stops: Sequence[str] = ()) -> Iterator[str]:
        """The answer, piece by piece; a thought stands between `<think>` and `</think>`."""
        self._say(f"{self.user}: {clean(text)}")
        start = opening(self.think)
        self.session.feed(f"{BLANK}{self.assistant}:{start}")
        own = dict.fromkeys((*STOPS, f"{BLANK}{self.user}:", f"{BLANK}{self.assistant}:"))
        first = True
        if self.think:
            yield start.lstrip()
        for piece in self.session.generate(max_tokens, (*own, *stops)):
            shown = piece
            if first and not self.think:  # after an empty thought comes the bracket that ends it
                shown = piece.lstrip().removeprefix(">" if self.think is False else "").lstrip()
            first = first and not shown
            if shown:
                yield shown

    def _say(self, text: str) -> None:
        self.session.feed(f"{BLANK}{text}" if self.begun else text)
        self.begun = True


def random_seed() -> int:
    """A seed that nobody can guess."""
    return int.from_bytes(os.urandom(8), "little")


def generate(
    model: Model,
    prompt: str,
    tokenizer: TokenizerLike,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> Iterator[str]:
    """How a text goes on, piece by piece as it comes. The same seed gives the same text.

    A Session does more: it goes on after that, saves states and says why it ended. Raises EngineError, ValueError.
    """
    session = Session(model, tokenizer, sampling, seed)
    session.feed(prompt)
    return session.generate(max_tokens, stops)
