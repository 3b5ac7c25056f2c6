"""The same request gives the same answer: whoever else is served, whatever is cached, however it is guessed ahead."""

from __future__ import annotations

import functools
import gc
import queue
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.engine.sampling import Sampling
from rwkvflow.serve.batching.job import Done, Failed, First, Piece, Read, TextJob
from rwkvflow.serve.batching.scheduler import Scheduler, Settings
from rwkvflow.serve.errors import ApiError
from rwkvflow.worker.model.tokenizers import Bytes
from tests.helpers.toy_model import ToyModel


class Heard:
    """What came of a job."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()

    def all(self) -> list[Any]:
        out = []
        while True:
            event = self.events.get(timeout=20)
            out.append(event)
            if isinstance(event, Done | Failed):
                return out

    def answer(self) -> tuple[str, str, int, int]:
        *rest, done = self.all()
        assert isinstance(done, Done), done
        text = "".join(event.text for event in rest if isinstance(event, Piece))
        return text, done.finish, done.prompt, done.generated


Ask = dict[str, Any]


def job(ask: Ask) -> tuple[TextJob, Heard]:
    heard = Heard()
    return TextJob(sink=heard.events.put, **ask), heard


def ask(seed: int, prompt: str | None = None, **more: Any) -> Ask:
    chance = random.Random(seed)
    text = prompt if prompt is not None else "ab c"[: chance.randrange(5)] * chance.randrange(40)
    tokens = Bytes().encode(text)
    return {
        "prompt": tokens,
        "ends": tuple(sorted({chance.randrange(1, len(tokens) + 1) for _ in range(3)})) if tokens else (),
        "sampling": Sampling(
            temperature=chance.choice([0, 0.5, 1]), top_p=chance.choice([0.5, 1]), presence=chance.choice([0, 0.4])
        ),
        "seed": seed,
        "most": chance.randrange(60),
        "stops": tuple(chance.sample(["ab", "qx", "e"], chance.randrange(3))),
        "logprobs": chance.choice([None, 0, 2]),
        **more,
    }


@pytest.fixture
def serve() -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def start(model: ToyModel | None = None, draft: ToyModel | None = None, **options: Any) -> Scheduler:
        opened: Any = model or ToyModel()
        open_draft: Callable[[], Any] | None = None if draft is None else lambda: draft
        made.append(Scheduler(lambda: opened, Bytes(), Settings(**options), open_draft))
        return made[-1]

    yield start
    for scheduler in made:
        if isinstance(scheduler.model, ToyModel):
            scheduler.model.gate.set()
        scheduler.close()
        assert scheduler.model.closed  # type: ignore[attr-defined]


def alone(asks: list[Ask]) -> list[Any]:
    out = []
    for each in asks:
        scheduler = Scheduler(ToyModel, Bytes(), Settings(slots=1, cache=0))  # type: ignore[arg-type]
        one, heard = job(each)
        scheduler.submit(one)
        out.append(heard.answer())
        scheduler.close()
    return out


@functools.cache
def mixed() -> tuple[list[Ask], list[Any]]:
    """Requests of all kinds, and what each is answered alone."""
    asks = [ask(seed) for seed in range(30)]
    return asks, alone(asks)


@pytest.mark.parametrize(
    "options",
    [
        {"cache": 0},
        {"cache": 400},
        {},
        {"guesses": 4, "lookup": True},
        {"guesses": 3, "draft": 0},
        {"guesses": 3, "draft": 1, "cache": 900},
        {"slots": 1, "guesses": 2, "lookup": True},
    ],
)
def test_an_answer_is_what_it_is_alone(options: dict[str, Any], serve: Callable[..., Scheduler]) -> None:
    asks, wanted = mixed()
    options = dict(options)
    if "draft" in options:
        options["draft"] = ToyModel(options["draft"])
    scheduler = serve(queue=100, **options)
    for again in range(2):  # the second time, much is in the cache
        order = random.Random(again).sample(range(len(asks)), len(asks))
        jobs = [job(asks[i]) for i in order]
        for one, _ in jobs:
            scheduler.submit(one)
        assert [heard.answer() for _, heard in jobs] == [wanted[i] for i in order]
    assert scheduler.cache.size <= scheduler.settings.cache
    figures = scheduler.figures
    assert figures.generated == 2 * sum(answer[3] for answer in wanted)
    if options.get("guesses"):
        assert 0 < figures.kept <= figures.guessed
    if options.get("draft") and options["draft"].skew == 0:  # it guesses what the model itself will say
        assert figures.kept > 0.9 * figures.guessed
    if "cache" not in options:
        assert figures.cached > 0


def test_what_comes_next_is_chosen_for_all_texts_of_a_pass_at_once(
    serve: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call a pass, however many texts; and nobody is rated where nobody asks."""
    scheduler = serve(slots=6, cache=0)
    chooser, sizes = scheduler._chooser, []
    choose = chooser.choose

    def counted(samplers: Any, *rest: Any) -> Any:
        sizes.append(len(samplers))
        return choose(samplers, *rest)

    monkeypatch.setattr(chooser, "choose", counted)
    monkeypatch.setattr(chooser, "rate", None)
    scheduler.model.gate.clear()  # type: ignore[attr-defined]
    jobs = [job(ask(seed, "ab", most=20, stops=(), end=None, logprobs=None)) for seed in range(6)]
    for one, _ in jobs:
        scheduler.submit(one)
    scheduler.model.gate.set()  # type: ignore[attr-defined]
    for _, heard in jobs:
        assert heard.answer()[3] == 20
    assert len(sizes) == len(scheduler.model.passes)  # type: ignore[attr-defined]
    assert sum(sizes) == 6 * 20
    assert sizes.count(6) >= 19


@pytest.mark.parametrize(("cost", "on"), [(0.1, True), (50.0, False)])
def test_guessing_ahead_is_off_where_it_costs_more_than_it_brings(
    cost: float, on: bool, serve: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a guess takes `cost` of a pass; the texts are the same."""
    scheduler = serve(guesses=3, lookup=True, cache=0, slots=2)
    now = 0.0
    passes = scheduler.model.eval_sequences

    def timed(sequences: Any, *rest: Any) -> Any:
        nonlocal now
        now += 1 + cost * (max(map(len, sequences)) - 1)
        return passes(sequences, *rest)

    monkeypatch.setattr(scheduler.model, "eval_sequences", timed)
    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr("rwkvflow.serve.batching.scheduler.time", clock)
    asks = [ask(seed, "ab " * 20, most=400, stops=(), end=None, logprobs=None) for seed in range(4)]
    for each in asks:
        each["sampling"] = Sampling(temperature=0)
    jobs = [job(each) for each in asks]
    for one, _ in jobs:
        scheduler.submit(one)
    assert [heard.answer() for _, heard in jobs] == alone(asks)
    lengths: list[list[int]] = scheduler.model.passes  # type: ignore[attr-defined]
    share = sum(max(each) > 1 for each in lengths) / len(lengths)
    assert share > 0.5 if on else share < 0.2, share


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 60), guesses=st.integers(0, 5))
def test_a_text_that_goes_on_reads_only_what_is_new(seed: int, cut: int, guesses: int) -> None:
    first = {**ask(seed, "abc " * 20), "most": 20, "stops": ()}
    scheduler = Scheduler(ToyModel, Bytes(), Settings(guesses=guesses, lookup=True))  # type: ignore[arg-type]
    one, heard = job(first)
    scheduler.submit(one)
    text = heard.answer()[0]
    longer = {
        **first,
        "prompt": first["prompt"][: 80 - cut] + Bytes().encode(text[: len(text) if cut == 0 else 0] + "!"),
    }
    two, heard = job(longer)
    scheduler.submit(two)
    *events, done = heard.all()
    places = [0, *(end for end in first["ends"] if end <= 80 - cut)]
    assert done.cached >= (80 if cut == 0 else max(places))
    assert [event.cached for event in events if isinstance(event, Read)] == [done.cached]
    scheduler.close()
    told = "".join(event.text for event in events if isinstance(event, Piece))
    assert (told, done.finish, done.prompt, done.generated) == alone([longer])[0]


def test_the_whole_prompt_in_the_cache_has_its_own_logits(serve: Callable[..., Scheduler]) -> None:
    scheduler = serve()
    answers = []
    for temperature in (0, 0, 1, 1):
        one, heard = job(ask(3, "Once", most=30, stops=(), sampling=Sampling(temperature=temperature, top_p=1)))
        scheduler.submit(one)
        answers.append(heard.answer())
    assert answers[0] == answers[1]
    assert answers[2] == answers[3] != answers[0]
    passes: list[list[int]] = scheduler.model.passes  # type: ignore[attr-defined]
    assert sum(sum(lengths) for lengths in passes if max(lengths) > 1) == 4


def test_choices_of_one_prompt_read_it_once(serve: Callable[..., Scheduler]) -> None:
    scheduler = serve(slots=4)
    prompt = "a long prompt " * 30
    first, heard = job(ask(0, prompt, most=5, stops=()))
    others = [job({**ask(0, prompt, most=5, stops=()), "seed": seed, "after": first}) for seed in (1, 2)]
    scheduler.submit(first, *(one for one, _ in others))
    answers = [h.answer() for h in (heard, *(h for _, h in others))]
    assert scheduler.figures.read == len(prompt)
    assert answers == alone([ask(0, prompt, most=5, stops=()) | {"seed": seed} for seed in (0, 1, 2)])


def test_a_full_queue_refuses_and_says_when(serve: Callable[..., Scheduler]) -> None:
    model = ToyModel()
    model.gate.clear()
    scheduler = serve(model, slots=1, queue=2)
    jobs = [job(ask(seed, "abc", most=3, stops=())) for seed in range(3)]
    for one, _ in jobs:
        scheduler.submit(one)
    with pytest.raises(ApiError) as refused:
        scheduler.submit(job(ask(9))[0])
    assert refused.value.status == 429
    assert int(refused.value.headers["retry-after"]) >= 1
    model.gate.set()
    for _, heard in jobs:
        assert heard.answer()[3] > 0
    assert scheduler.figures.refused == 1


def test_who_leaves_frees_a_place_and_ends_nobody_else(serve: Callable[..., Scheduler]) -> None:
    """In the queue, while its prompt is read, and while its answer comes."""
    model = ToyModel()
    scheduler = serve(model, slots=2, queue=10)
    asks = [ask(5, "x" * 3000, most=5, stops=()), ask(6, "abc", most=10**6, stops=(), end=None)]
    stays = ask(7, "abcd", most=40, stops=())
    model.gate.clear()
    reading, writing = job(asks[0]), job(asks[1])
    scheduler.submit(reading[0])
    scheduler.submit(writing[0])
    queued, last = job(ask(8, "q", most=5)), job(stays)
    scheduler.submit(queued[0])
    scheduler.submit(last[0])
    scheduler.cancel(queued[0])
    scheduler.cancel(reading[0])
    model.gate.set()
    assert isinstance(writing[1].events.get(timeout=20), Read)
    assert last[1].answer() == alone([stays])[0]
    assert isinstance(writing[1].events.get(timeout=20), Piece)
    scheduler.cancel(writing[0])
    after = job(stays)
    scheduler.submit(after[0])
    assert after[1].answer() == alone([stays])[0]
    assert queued[1].all() == [Failed("it was cancelled")]
    assert scheduler.figures.cancelled == 3
    assert (scheduler.waiting, scheduler.working) == (0, 0)


def test_a_long_prompt_keeps_nobody_waiting(serve: Callable[..., Scheduler]) -> None:
    model = ToyModel()
    scheduler = serve(model, slots=2, cache=0)
    model.gate.clear()
    long, short = job(ask(1, "y" * 5000, most=1, stops=())), job(ask(2, "abc", most=30, stops=(), end=None))
    scheduler.submit(long[0])
    scheduler.submit(short[0])
    model.gate.set()
    short[1].all()
    long[1].all()
    assert len([lengths for lengths in model.passes if len(lengths) == 1]) > 5  # the long one was read on after that
    both = [lengths for lengths in model.passes if len(lengths) == 2]
    assert len(both) >= 29
    assert all(max(lengths) <= 64 for lengths in both[1:])


def test_logits_that_are_not_finite_end_that_answer_alone(serve: Callable[..., Scheduler]) -> None:
    model = ToyModel()
    model.poisoned = ord("!")
    scheduler = serve(model)
    bad, good = job(ask(1, "abc!", most=5)), job(ask(2, "abc", most=20, stops=()))
    scheduler.submit(bad[0])
    scheduler.submit(good[0])
    (failed,) = [event for event in bad[1].all() if isinstance(event, Failed)]
    assert "not finite" in failed.message
    assert good[1].answer() == alone([ask(2, "abc", most=20, stops=())])[0]


def test_a_state_is_kept_and_begun_from(serve: Callable[..., Scheduler]) -> None:
    scheduler = serve()
    keep, heard = job({"prompt": Bytes().encode("Once there"), "most": 0, "keep": True})
    scheduler.submit(keep)
    done = heard.all()[-1]
    whole = ask(3, "Once there was", most=20, stops=())
    plain = {**whole, "prompt": Bytes().encode(" was"), "ends": ()}
    part = {**plain, "first": First("kept", done.state, done.logits)}
    empty = {**part, "prompt": []}
    same = {**plain, "prompt": Bytes().encode("Once there")}
    for _ in range(2):
        for given_ask, wanted_ask in ((part, whole), (empty, same)):
            one, heard = job(given_ask)
            scheduler.submit(one)
            text, finish, _, count = heard.answer()
            assert (text, finish, count) == tuple(np.array(alone([wanted_ask])[0], object)[[0, 1, 3]])
    other, heard = job(plain)  # the same tokens, from a fresh state
    scheduler.submit(other)
    assert heard.answer() == alone([plain])[0]


def test_an_end_tells_everybody(serve: Callable[..., Scheduler]) -> None:
    model = ToyModel()
    scheduler = serve(model, slots=1)
    model.gate.clear()
    jobs = [job(ask(seed, "abc", most=10**6, stops=(), end=None)) for seed in range(3)]
    for one, _ in jobs:
        scheduler.submit(one)
    model.gate.set()
    scheduler.close()
    for _, heard in jobs:
        assert heard.all()[-1] == Failed("the server is closing", closing=True)
    with pytest.raises(ApiError):
        scheduler.submit(job(ask(1))[0])


def resident() -> int:
    """Bytes of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.soak
def test_memory_stays_flat_over_ten_thousand_requests(serve: Callable[..., Scheduler]) -> None:
    scheduler = serve(cache=200_000, guesses=3, lookup=True)
    before = 0
    for seed in range(10_000):
        one, heard = job(ask(seed % 700, f"request {seed} " * 3, most=4))
        scheduler.submit(one)
        if seed % 7 == 0:
            scheduler.cancel(one)
        else:
            heard.all()
        before = resident() if seed == 2000 else before
    assert resident() - before < 8 << 20
    assert (scheduler.waiting, scheduler.cache.size <= 200_000) == (0, True)


def test_memory_stays_flat(serve: Callable[..., Scheduler]) -> None:
    scheduler = serve(cache=20_000)
    for seed in range(300):
        one, heard = job(ask(seed, f"request {seed} " * 3, most=4))
        scheduler.submit(one)
        heard.all()
    assert 0 < scheduler.cache.size <= 20_000
    assert scheduler.cache.size == sum(kept.size for _, _, kept in scheduler.cache.nodes() if kept is not None)
    assert len(list(scheduler.cache.nodes())) <= 2 * len(scheduler.cache) + 1
