"""From a request to jobs, and from what comes of them to text: what chat and plain completions share."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvflow.engine.sampling import Sampling
from rwkvflow.serve.batching.grammar import Masked
from rwkvflow.serve.batching.job import Chosen, Done, Event, Failed, First, Piece, TextJob
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.openai.schema import MOST_STOPS, ResponseFormat, Sampled, Writing
from rwkvflow.serve.shelf import Served

SEEDS = 1 << 64


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for. Counts of tokens."""

    prompt: int = 1 << 16
    tokens: int = 1 << 14


def encode(served: Served, text: str, param: str) -> list[int]:
    """Tokens of a text. Raises ApiError (400) for a text that this model's tokenizer has no tokens for."""
    from rwkvflow.engine.errors import EngineError

    try:
        return served.tokenizer.encode(text)
    except EngineError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None


def check_tokens(served: Served, tokens: Sequence[int], param: str) -> list[int]:
    """Raises ApiError (400) for one that is not in the vocabulary."""
    bad = next((token for token in tokens if not 0 <= token < served.model.n_vocab), None)
    if bad is not None:
        raise ApiError(400, f"{param}: there is no token {bad} in {served.model.n_vocab}", param=param)
    return list(tokens)


def ends_in_tokens(served: Served, text: str, ends: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """After how many tokens each of these ends (in characters of the text) is reached, and not passed."""
    starts = (0, *ends[:-1])
    marks = list(itertools.accumulate(len(text[a:b].encode()) for a, b in zip(starts, ends, strict=True)))
    out, size, at = [], 0, 0
    for count, token in enumerate(tokens):
        size += len(served.tokenizer.piece(token))
        while at < len(marks) and marks[at] < size:
            out.append(count)
            at += 1
    return tuple(sorted({*out, *([len(tokens)] if at < len(marks) else [])} - {0}))


def seed_of(request: Sampled) -> int:
    """The one that was asked for, or one that nobody can guess."""
    return int.from_bytes(os.urandom(6), "little") if request.seed is None else request.seed % SEEDS


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Raises ApiError (400)."""
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MOST_STOPS or any(len(each) > 1024 for each in found):
        raise ApiError(400, f"stop: at most {MOST_STOPS} texts of at most 1024 characters", param="stop")
    return tuple(each for each in found if each)


def schema_of(wanted: ResponseFormat | None) -> Any:
    """The JSON schema that an answer has to fit; None for any text. Raises ApiError (400)."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise ApiError(400, "response_format: a json_schema is missing", param="response_format.json_schema")
    return wanted.json_schema.json_schema


def makes_grammar(request: Writing) -> bool:
    """Whether one is made, or may be, for what the request asks for."""
    called = getattr(request, "tool_choice", None) not in (None, "none", "auto")
    formed = any(getattr(request, name, None) is not None for name in ("response_format", "text"))
    return called or formed or request.grammar is not None


def make_jobs(
    request: Sampled,
    served: Served,
    prompts: Sequence[tuple[list[int], tuple[int, ...]]],
    answers: AnswerStream,
    limits: RequestLimits,
    *,
    seed: int,
    most: int,
    stops: tuple[str, ...],
    logprobs: int | None,
    schema: Any = None,
) -> list[TextJob]:
    """The jobs of a request, `n` for each prompt (tokens, ends), in order. Raises ApiError (400).

    The k-th answer to a prompt has the seed `seed` + k.
    """
    if most > limits.tokens:
        raise ApiError(400, f"max_tokens: at most {limits.tokens} here", param="max_tokens")
    choices = request.n or 1
    settings = served.scheduler.settings
    if len(prompts) * choices > settings.slots + settings.queue:  # it could never be taken
        most_texts = f"at most {settings.slots + settings.queue} texts in one request here"
        raise ApiError(400, most_texts, param="n" if choices > 1 else "prompt")
    if schema is not None and request.grammar is not None:
        raise ApiError(400, "grammar: it does not go together with a schema", param="grammar")
    sampling = Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=0.7 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        presence=request.presence_penalty or 0.0,
        frequency=request.frequency_penalty or 0.0,
        decay=0.996 if request.penalty_decay is None else request.penalty_decay,
    )
    first: First | None = None if request.state is None else served.states.get(request.state).first
    grammar: Masked | None = None
    if schema is not None:
        grammar = served.grammars().of_schema(schema, "response_format")
    elif request.grammar is not None:
        grammar = served.grammars().of_text(request.grammar)
    jobs: list[TextJob] = []
    for prompt, ends in prompts:
        if len(prompt) > limits.prompt:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens; at most {limits.prompt} are read here",
                param="messages" if hasattr(request, "messages") else "prompt",
                code="context_length_exceeded",
            )
        leader: TextJob | None = None
        for choice in range(choices):
            jobs.append(
                TextJob(
                    prompt,
                    answers.sink(len(jobs)),
                    sampling,
                    (seed + choice) % SEEDS,
                    most,
                    stops,
                    bias=bias_of(request, served),
                    grammar=None if grammar is None else grammar.copy(),
                    logprobs=logprobs,
                    ends=ends,
                    first=first,
                    after=leader,
                )
            )
            leader = leader or jobs[-1]
    return jobs


def bias_of(request: Sampled, served: Served) -> dict[int, float]:
    """Raises ApiError (400) for what is no token."""
    out = {}
    for name, value in (request.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < served.model.n_vocab):
            raise ApiError(400, f"logit_bias: {name[:20]!r} is no token of this model", param="logit_bias")
        out[int(name)] = value
    return out


class AnswerStream:
    """What comes of a request's jobs, in the event loop. `close` has to be called at the end."""

    def __init__(self, served: Served, loop: asyncio.AbstractEventLoop) -> None:
        """In any thread; `loop` is where events are heard."""
        self._served, self._loop = served, loop
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._jobs: list[TextJob] = []
        self._left = 0
        self.done: dict[int, Done] = {}

    def sink(self, index: int) -> Any:
        """Where the scheduler's thread puts the events of a job."""

        def put(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return put

    def submit(self, jobs: Sequence[TextJob]) -> None:
        """In the event loop, so that who goes before it leaves nothing behind. Raises ApiError (429, 503)."""
        self._served.scheduler.submit(*jobs)
        self._jobs = list(jobs)
        self._left = len(jobs)

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(job, event) until all are done. Raises ApiError where one fails."""
        while self._left:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                status = 503 if event.closing else 500
                raise ApiError(status, event.message, code="server_closing" if event.closing else "generation_failed")
            if isinstance(event, Done):
                self.done[index] = event
                self._left -= 1
            yield index, event

    def close(self) -> None:
        """Cancels what is not done."""
        for index, job in enumerate(self._jobs):
            if index not in self.done:
                self._served.scheduler.cancel(job)

    def usage(self, choices: int = 1) -> dict[str, Any]:
        """Each prompt counts once, however many choices it has."""
        prompt = sum(done.prompt for index, done in self.done.items() if index % choices == 0)
        generated = sum(done.generated for done in self.done.values())
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    @property
    def cached(self) -> int:
        """Tokens of prompts that were not read again."""
        return sum(done.cached for done in self.done.values())


async def collected(answers: AnswerStream, count: int) -> tuple[list[str], list[list[Chosen]]]:
    """The texts and tokens of all answers. Raises ApiError."""
    texts = [""] * count
    tokens: list[list[Chosen]] = [[] for _ in range(count)]
    async for index, event in answers.events():
        if isinstance(event, Piece):
            texts[index] += event.text
            tokens[index] += event.tokens
    return texts, tokens
