"""POST /v1/completions and POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import numpy as np

from rwkvflow.serve.aside import Aside
from rwkvflow.serve.batching.job import Chosen, Done, Piece, TextJob
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.openai.answer import new_id
from rwkvflow.serve.openai.schema import Completion, Embedding
from rwkvflow.serve.openai.work import (
    AnswerStream,
    RequestLimits,
    check_tokens,
    collected,
    encode,
    make_jobs,
    schema_of,
    seed_of,
    stops_of,
)
from rwkvflow.serve.shelf import Served

MOST_PROMPTS = 256


def texts_or_tokens(given: object, served: Served, param: str) -> list[list[int]]:
    """One prompt or several, as text or as tokens. Raises ApiError (400)."""
    if isinstance(given, str):
        return [encode(served, given, param)]
    entries = cast(list[Any], given)
    if entries and isinstance(entries[0], int):
        return [check_tokens(served, entries, param)]
    if not entries or len(entries) > MOST_PROMPTS:
        raise ApiError(400, f"{param}: from 1 to {MOST_PROMPTS} of them", param=param)
    return [
        encode(served, entry, param) if isinstance(entry, str) else check_tokens(served, entry, param)
        for entry in entries
    ]


class Continuation:
    """A plain completion under way."""

    def __init__(
        self, request: Completion, served: Served, limits: RequestLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        """In any thread, as a grammar may take its time; `jobs` are then to be submitted. Raises ApiError (400)."""
        if request.suffix:
            raise ApiError(400, "suffix: the models read forward only", param="suffix")
        if request.best_of is not None and request.best_of != (request.n or 1):
            raise ApiError(400, "best_of: it has to be n", param="best_of")
        if request.echo and request.logprobs is not None:
            raise ApiError(400, "echo: not together with logprobs", param="echo")
        self.request, self.served = request, served
        self.answers = AnswerStream(served, loop)
        self.seed, self.n = seed_of(request), request.n or 1
        self.id, self.created = new_id("cmpl"), int(time.time())
        self.prompts = texts_or_tokens(request.prompt, served, "prompt")
        self.jobs = make_jobs(
            request,
            served,
            [(tokens, ()) for tokens in self.prompts],
            self.answers,
            limits,
            seed=self.seed,
            most=16 if request.max_tokens is None else request.max_tokens,
            stops=stops_of(request.stop),
            logprobs=request.logprobs,
            schema=schema_of(request.response_format),
        )
        self._offsets = [0] * len(self.jobs)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.entry.name,
            "system_fingerprint": self.served.digest,
        }

    def _echo(self, index: int) -> str:
        return self.served.tokenizer.decode(self.prompts[index // self.n]) if self.request.echo else ""

    async def whole(self) -> dict[str, Any]:
        """The response that is no stream. Raises ApiError."""
        texts, tokens = await collected(self.answers, len(self.jobs))
        choices = [
            {
                "index": index,
                "text": self._echo(index) + text,
                "logprobs": self._rated(index, tokens[index]),
                "finish_reason": self.answers.done[index].finish,
            }
            for index, text in enumerate(texts)
        ]
        return {
            **self._head(),
            "choices": choices,
            "usage": self.answers.usage(self.n),
            "rwkvflow": {"seed": self.seed, "cached_tokens": self.answers.cached},
        }

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """The response as a stream. Raises ApiError."""
        usage = self.request.stream_options is not None and self.request.stream_options.include_usage

        def chunk(index: int, text: str, tokens: Sequence[Chosen], finish: str | None) -> dict[str, Any]:
            logprobs = self._rated(index, tokens)
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
            return {**self._head(), "choices": [choice], **({"usage": None} if usage else {})}

        for index in range(len(self.jobs)):
            if echo := self._echo(index):
                yield chunk(index, echo, (), None)
        async for index, event in self.answers.events():
            if isinstance(event, Piece):
                yield chunk(index, event.text, event.tokens, None)
            elif isinstance(event, Done):
                yield chunk(index, "", (), event.finish)
        if usage:
            extra = {"seed": self.seed, "cached_tokens": self.answers.cached}
            yield {**self._head(), "choices": [], "usage": self.answers.usage(self.n), "rwkvflow": extra}

    def _rated(self, index: int, tokens: Sequence[Chosen]) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        pieces = [self._piece(chosen.token) for chosen in tokens]
        offsets = []
        for piece in pieces:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(piece)
        top = [{self._piece(token): logprob for token, logprob in chosen.top} for chosen in tokens]
        return {
            "tokens": pieces,
            "token_logprobs": [chosen.logprob for chosen in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _piece(self, token: int) -> str:
        return self.served.tokenizer.piece(token).decode(errors="replace")


async def embeddings(request: Embedding, served: Served, limits: RequestLimits, aside: Aside) -> dict[str, Any]:
    """The vector after the last layer norm, of the last token of each input. Raises ApiError."""
    if request.dimensions not in (None, served.model.n_embd):
        message = f"dimensions: this model's vectors have {served.model.n_embd}"
        raise ApiError(400, message, param="dimensions")
    inputs = await aside.run(texts_or_tokens, request.input, served, "input")
    if any(not tokens or len(tokens) > limits.prompt for tokens in inputs):
        raise ApiError(400, f"input: from 1 to {limits.prompt} tokens each", param="input")
    answers = AnswerStream(served, asyncio.get_running_loop())
    try:
        answers.submit([TextJob(tokens, answers.sink(i), most=0, embed=True) for i, tokens in enumerate(inputs)])
        async for _ in answers.events():
            pass
    finally:
        answers.close()
    data = []
    for index in range(len(inputs)):
        hidden = answers.done[index].hidden
        vector = np.zeros(0, "<f4") if hidden is None else hidden.astype("<f4")
        packed: Any = vector.tolist()
        if request.encoding_format == "base64":
            packed = base64.b64encode(vector.tobytes()).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": packed})
    count = sum(map(len, inputs))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": served.entry.name, "usage": usage}
