"""The thread that owns a model, and serves everybody at once.

Again and again, it takes the next tokens of every text that it works on, some of a prompt or one of an answer with
guesses behind it, and evaluates all of them in one pass over the weights. What a text comes to does not depend on what
else is in the pass: the engine gives each sequence the bits that it has alone, and chance comes from a text's own seed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rwkvflow.engine.binding import Model
from rwkvflow.engine.choosing import Bits, Rating, chooser_of
from rwkvflow.engine.drafts import Payoff, SmallModel
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.sampling import NOT_FINITE, existing
from rwkvflow.engine.session import TokenizerLike
from rwkvflow.serve.batching.cache import StateCache
from rwkvflow.serve.batching.job import Event, Failed, Floats, Read, TextJob
from rwkvflow.serve.batching.slot import SequenceSlot
from rwkvflow.serve.errors import busy, closing

READ_ALONE = 256  # tokens of prompts in one pass while nobody waits for the next token of an answer
READ_BESIDE = 64  # and while somebody does
READ_LEAST = 8  # of each prompt


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    slots   texts that are worked on at once; `queue`: further ones that may wait
    cache   bytes that kept states may take
    guesses how many tokens are guessed ahead, at most; `lookup`: from the text so far
    """

    slots: int = 8
    queue: int = 64
    cache: int = 1 << 30
    guesses: int = 0
    lookup: bool = False


@dataclass
class SchedulerFigures:
    """What happened so far, for /metrics. Written by the scheduler's thread, read by any."""

    requests: int = 0
    cancelled: int = 0
    refused: int = 0
    failed: int = 0
    passes: int = 0
    read: int = 0  # tokens of prompts
    cached: int = 0  # tokens of prompts that were not read again
    generated: int = 0
    guessed: int = 0
    kept: int = 0
    busy_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=32))  # seconds that requests took


class Scheduler:
    """Serves one model. `submit` may be called from any thread; events come from the scheduler's own."""

    def __init__(
        self,
        open_model: Callable[[], Model],
        tokenizer: TokenizerLike,
        settings: Settings,
        open_draft: Callable[[], Model] | None = None,
    ) -> None:
        """Opens the model here, so that what is wrong with it is raised here: EngineError."""
        self.settings, self.tokenizer = settings, tokenizer
        self.figures = SchedulerFigures()
        self.model = open_model()
        try:
            if not self.model.library.takes_sequences:
                raise EngineError(f"{self.model.library.path.name} cannot serve; it takes librwkv of this version")
            self.draft = None if open_draft is None else SmallModel(open_draft())
            if self.draft is not None and self.draft.model.n_vocab != self.model.n_vocab:
                raise EngineError(
                    f"{self.draft.model.path.name} has {self.draft.model.n_vocab} tokens, {self.model.path.name} has "
                    f"{self.model.n_vocab}: it cannot guess for it"
                )
        except BaseException:
            self.model.close()
            raise
        self.payoff = Payoff()
        self._chooser = chooser_of(self.model)
        self._exist = existing(tokenizer, self.model.n_vocab)
        self.cache = StateCache(settings.cache)
        self._changed = threading.Condition()
        self._waiting: deque[TextJob] = deque()
        self._slots: list[SequenceSlot] = []
        self._closing = False
        self.last_used = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"serve {self.model.path.name}", daemon=True)
        self._thread.start()

    # ---- from any thread ---------------------------------------------------------------------------------------------

    def submit(self, *jobs: TextJob) -> None:
        """Takes all or none of the jobs. Raises ApiError (429) where too many wait, (503) while the server ends."""
        with self._changed:
            if self._closing:
                raise closing("the model is being closed")
            free = self.settings.slots - len(self._slots)
            if len(self._waiting) + len(jobs) > self.settings.queue + max(0, free):
                self.figures.refused += len(jobs)
                raise busy(len(self._waiting), self.wait_seconds())
            self._waiting.extend(jobs)
            self.figures.requests += len(jobs)
            self.last_used = time.monotonic()
            self._changed.notify()

    def cancel(self, job: TextJob) -> None:
        """Nobody wants it any more: it goes from the queue, or frees its slot before the next token."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Jobs in slots."""
        return len(self._slots)

    def wait_seconds(self) -> int:
        """About how long until a slot is free, at least 1."""
        recent = list(self.figures.recent)
        mean = sum(recent) / len(recent) if recent else 1.0
        return max(1, min(60, round(mean * (1 + len(self._waiting)) / self.settings.slots)))

    def end(self) -> None:
        """Ends every job with Failed(closing), and then the thread. Waits for nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self) -> None:
        """Ends every job with Failed(closing), and the thread; frees the model. Waits for the pass that is running."""
        self.end()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # ---- in its own thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            started = None
            try:
                if not self._next_round():
                    break
                started = time.monotonic()
                self._pass()
            except (EngineError, ValueError, MemoryError) as error:
                self._fail(f"the model failed: {error}")
            except Exception as error:  # a fault of ours must not leave clients waiting for ever
                self._fail(f"an error of the server's own: {type(error).__name__}: {error}")
            if started is not None:
                self.figures.busy_seconds += time.monotonic() - started
        self._fail("the server is closing", closing=True)
        self.model.close()
        if self.draft is not None:
            self.draft.model.close()

    def _next_round(self) -> bool:
        """Waits for something to do and fills free slots; False at the end."""
        with self._changed:
            while True:
                if self._closing:
                    return False
                self._drop_cancelled()
                self._admit()
                if self._slots:
                    return True
                self._changed.wait()

    def _drop_cancelled(self) -> None:
        gone = [job for job in self._waiting if job.cancelled]
        if gone:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        gone += [slot.job for slot in self._slots if slot.job.cancelled]
        self._slots = [slot for slot in self._slots if not slot.job.cancelled]
        self.figures.cancelled += len(gone)
        for job in gone:  # nobody should listen any more; whoever does hears of an end as everybody does
            _end(job, Failed("it was cancelled"))

    def _admit(self) -> None:
        for job in [job for job in self._waiting if job.after is None or job.after.was_read]:
            if len(self._slots) >= self.settings.slots:
                return
            self._waiting.remove(job)
            s = self.settings
            try:
                slot = SequenceSlot(
                    job,
                    self.model,
                    self.tokenizer,
                    self.cache,
                    self._chooser,
                    lookup=s.lookup,
                    guesses=s.guesses,
                    exist=self._exist,
                )
            except Exception as error:
                self.figures.failed += 1
                _end(job, Failed(f"it cannot be begun: {type(error).__name__}: {error}"))
            else:
                self._slots.append(slot)

    def _fail(self, message: str, *, closing: bool = False) -> None:
        with self._changed:
            jobs = [slot.job for slot in self._slots]
            self._slots = []
            if closing:
                jobs += self._waiting
                self._waiting = deque()
        self.figures.failed += len(jobs)
        for job in jobs:
            _end(job, Failed(message, closing))

    def _pass(self) -> None:
        self._hear((slot, slot.begin()) for slot in self._slots if not slot.begun)
        begun = time.perf_counter()
        working = self._slots
        if not working:
            return
        reading = [slot for slot in working if slot.reading]
        pays = self.settings.guesses > 0 and self.payoff.pays(len(working) - len(reading))
        for slot in working:
            slot.may_guess = pays
        if pays:
            self._guess()
        room = READ_ALONE if len(reading) == len(working) else READ_BESIDE
        share = max(READ_LEAST, room // max(1, len(reading)))
        parts = [slot.next_part(share) for slot in working]
        tokens: list[Sequence[int]] = []
        states: list[Floats | None] = []
        out: list[Floats | None] = []
        wanted: list[int] = []
        hidden: list[int] = []
        for part in parts:
            first = len(out)
            tokens.append(part.tokens)
            states.append(part.state)
            out += part.out
            wanted += [first + at for at in part.logits]
            hidden += [first + at for at in part.hidden]
        logits, vectors = self.model.eval_sequences(tokens, states, out, wanted, hidden)
        self.figures.passes += 1
        spent = time.perf_counter() - begun
        row = vector = 0
        heard = []
        written = sum(slot.generated for slot in working)
        for slot, part in zip(working, parts, strict=True):
            here = logits[row : row + len(part.logits)]
            row += len(part.logits)
            last = vectors[vector] if part.hidden else None
            vector += len(part.hidden)
            self.figures.read += len(part.tokens) if slot.reading else 0
            self.figures.guessed += len(part.guesses)
            heard.append((slot, slot.took(part, here, last)))
        self._hear(heard)
        guessed = any(part.guesses for part in parts)
        if not reading and guessed == pays:
            written = sum(slot.generated for slot in working) - written
            self.payoff.took(len(working), guessed, max(1, written), spent)
        for slot in working:
            self.figures.kept += slot.kept
            if self.draft is not None:
                self.draft.went_on(slot.follower, slot.kept)

    def _hear(self, heard: Iterable[tuple[SequenceSlot, Iterable[Event]]]) -> None:
        """Lets texts go on, tells what comes of it, and takes those out that are over.

        The end is told when a slot is free: who hears it may ask for another model at once.
        """
        gone: list[SequenceSlot] = []
        ends: list[tuple[TextJob, Event]] = []
        texts: list[SequenceSlot] = []
        for slot, events in heard:
            texts.append(slot)
            for event in events:
                self.figures.cached += event.cached if isinstance(event, Read) else 0
                _tell(slot.job, event)
        before = [slot.generated for slot in texts]
        failed = self._choose(texts)
        for slot, count in zip(texts, before, strict=True):
            if slot in failed:
                self.figures.failed += 1
                slot.job.was_read = True
                ends.append((slot.job, Failed(f"the model failed: {failed[slot]}")))
                gone.append(slot)
                continue
            self.figures.generated += slot.generated - count
            if (piece := slot.writer.ready()) is not None:
                _tell(slot.job, piece)
            if slot.over:
                gone.append(slot)
                self.figures.recent.append(time.monotonic() - slot.started)
                ends.append((slot.job, slot.end()))
        if gone:
            with self._changed:
                self._slots = [slot for slot in self._slots if slot not in gone]
                self.last_used = time.monotonic()
        for job, event in ends:
            _tell(job, event)

    def _choose(self, texts: Iterable[SequenceSlot]) -> dict[SequenceSlot, str]:
        """Chooses what comes next in all texts that wait for it; returns why there is nothing, of each that has failed.

        All together, then once more those whose guess was right, and so on.
        """
        failed: dict[SequenceSlot, str] = {}
        waiting = [slot for slot in texts if slot.row is not None]
        while waiting:
            asked: list[tuple[SequenceSlot, Floats, Bits | None]] = []
            for slot in waiting:
                try:
                    asked += [(slot, slot.row, slot.writer.allowed())] if slot.row is not None else []
                except ValueError as error:  # of this text alone
                    failed[slot] = str(error)
            slots, rows = [slot for slot, _, _ in asked], [row for _, row, _ in asked]
            tokens = self._chooser.choose([s.writer.sampler for s in slots], rows, [bits for _, _, bits in asked])
            found = zip(slots, rows, tokens, strict=True)
            chosen = [(slot, row, token) for slot, row, token in found if token is not None]
            failed |= dict.fromkeys(set(slots) - {slot for slot, _, _ in chosen}, NOT_FINITE)
            ratings = self._rate([each for each in chosen if each[0].job.logprobs is not None])
            for slot, _, token in chosen:
                slot.chose(token, ratings.get(slot, (0.0, ())))
            waiting = [slot for slot, _, _ in chosen if slot.row is not None]
        return failed

    def _rate(self, chosen: Sequence[tuple[SequenceSlot, Floats, int]]) -> dict[SequenceSlot, Rating]:
        slots = [slot for slot, _, _ in chosen]
        asked = [(token, slot.job.logprobs or 0) for slot, _, token in chosen]
        samplers, rows = [slot.writer.sampler for slot in slots], [row for _, row, _ in chosen]
        return dict(zip(slots, self._chooser.rate(samplers, rows, asked) if slots else (), strict=True))

    def _guess(self) -> None:
        if self.draft is None:
            return
        texts = [slot for slot in self._slots if not slot.reading]
        guesses = self.draft.guess([(s.follower, s.tokens, s.writer.sampler, s.room_for_guesses()) for s in texts])
        for slot, found in zip(texts, guesses, strict=True):
            slot.guesses = found


def _end(job: TextJob, event: Failed) -> None:
    job.was_read = True
    _tell(job, event)


def _tell(job: TextJob, event: Event) -> None:
    # A client's loop that is gone takes no more events; its job was cancelled, or will be.
    with contextlib.suppress(RuntimeError):
        job.sink(event)
