"""The server as an ASGI application: its routes, and how errors are answered."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rwkvflow import __version__
from rwkvflow.engine.prompts import render
from rwkvflow.serve.aside import Aside
from rwkvflow.serve.batching.job import First, TextJob
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.guard import Guard, Rules, answer
from rwkvflow.serve.metrics import metrics
from rwkvflow.serve.openai.chat import Conversation, asked
from rwkvflow.serve.openai.completions import Continuation, embeddings
from rwkvflow.serve.openai.openapi import described
from rwkvflow.serve.openai.responses import Responding
from rwkvflow.serve.openai.schema import Chat, Completion, Detokenize, Embedding, KeepState, Respond, Tokenize, parse
from rwkvflow.serve.openai.stream import Events, Left, unless_left
from rwkvflow.serve.openai.work import AnswerStream, RequestLimits, check_tokens, encode, makes_grammar
from rwkvflow.serve.shelf import Served, ServedFile, Shelf
from rwkvflow.serve.states import KeptState, KeptStates

PAGE = Path(__file__).parent / "page" / "index.html"
# The page is one file: whatever is not in it is not loaded, and nothing is sent elsewhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
B = TypeVar("B", bound=BaseModel)
R = TypeVar("R", Chat, Completion, Respond)
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The handlers."""

    def __init__(self, shelf: Shelf, limits: RequestLimits) -> None:
        self.shelf, self.limits = shelf, limits
        self.started = int(time.time())
        self.aside = Aside()
        self.slow = Aside()  # what may take long, so that what takes a moment never waits behind it

    async def _body(self, request: Request, kind: type[B]) -> B:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "content-type: it has to be application/json", code="not_json")
        body = await request.body()
        return await self.aside.run(parse, kind, body) if len(body) > 1 << 16 else parse(kind, body)

    async def _served(self, name: str | None) -> Served:
        found = self.shelf.at_hand(name)
        return found if found is not None else await self.slow.run(self.shelf.get, name)

    async def page(self, request: Request) -> Response:
        """GET /"""
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    async def health(self, request: Request) -> Response:
        """GET /health"""
        return JSONResponse({"status": "ok", "version": __version__})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics"""
        return Response(metrics(self.shelf), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json"""
        return JSONResponse(described())

    def _about(self, entry: ServedFile) -> dict[str, Any]:
        names = ("format", "verdict", "kl_divergence", "perplexity", "perplexity_rise", "top1_agreement")
        facts = {name: entry.facts.get(name) for name in (*names, "bits_per_weight", "weight_bytes")}
        return {
            "id": entry.name,
            "object": "model",
            "created": int(entry.path.stat().st_mtime) if entry.path.exists() else self.started,
            "owned_by": "rwkvflow",
            "size": entry.size,
            "sha256": self.shelf.sha256(entry),
            **facts,
        }

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._about(entry) for entry in self.shelf.entries.values()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}"""
        return JSONResponse(self._about(self.shelf.entry(request.path_params["id"])))

    async def plot(self, request: Request) -> Response:
        """GET /plot: the release's plot of quality against size."""
        for entry in self.shelf.entries.values():
            path = None if entry.release is None else entry.release / "quality.svg"
            if path is not None and path.is_file():
                return Response(path.read_bytes(), media_type="image/svg+xml")
        raise ApiError(404, "no release with a plot is served", code="no_plot")

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        body = await self._body(request, Chat)
        return await self._answered(request, body, Conversation)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        body = await self._body(request, Completion)
        return await self._answered(request, body, Continuation)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses"""
        body = await self._body(request, Respond)
        return await self._answered(request, body, Responding)

    async def _answered(
        self, request: Request, body: R, kind: Callable[..., Conversation | Continuation | Responding]
    ) -> Response:
        served, loop = await self._served(body.model), asyncio.get_running_loop()
        aside = self.slow if makes_grammar(body) else self.aside
        work = await aside.run(kind, body, served, self.limits, loop)
        work.answers.submit(work.jobs)
        if body.stream:
            return Events(work.pieces(), work.answers.close, named=isinstance(work, Responding))
        try:
            return JSONResponse(await unless_left(request, work.whole()))
        finally:
            work.answers.close()

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        body = await self._body(request, Embedding)
        served = await self._served(body.model)
        return JSONResponse(await unless_left(request, embeddings(body, served, self.limits, self.aside)))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize"""
        body = await self._body(request, Tokenize)
        served = await self._served(body.model)

        def tokens() -> Response:
            found = encode(served, body.content, "content")
            pieces = [(token, served.tokenizer.piece(token)) for token in found if body.with_pieces]
            texts = [{"id": t, "piece": p.decode(errors="replace"), "bytes": list(p)} for t, p in pieces]
            return JSONResponse({"tokens": texts if body.with_pieces else found})

        return await self.aside.run(tokens)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize"""
        body = await self._body(request, Detokenize)
        served = await self._served(body.model)

        def text() -> Response:
            return JSONResponse({"content": served.tokenizer.decode(check_tokens(served, body.tokens, "tokens"))})

        return await self.aside.run(text)

    async def apply_template(self, request: Request) -> Response:
        """POST /apply-template: what a conversation looks like to the model."""
        body = await self._body(request, Chat)
        served = await self._served(body.model)
        return JSONResponse({"prompt": (await self.aside.run(asked, body, served.template)).text})

    # ---- states ------------------------------------------------------------------------------------------------------

    async def keep_state(self, request: Request) -> Response:
        """POST /v1/states"""
        body = await self._body(request, KeepState)
        served = await self._served(body.model)
        if sum(each is not None for each in (body.text, body.tokens, body.messages)) != 1:
            raise ApiError(400, "one of text, tokens and messages is needed", param="text")

        def read() -> list[int]:
            if body.tokens is not None:
                return check_tokens(served, body.tokens, "tokens")
            if body.messages is not None and served.template is not None:
                message = "messages: this model has a chat template of its own; send text, or tokens"
                raise ApiError(400, message, param="messages")
            try:
                text = body.text if body.messages is None else render(body.messages, generate=False).text
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ApiError(400, f"messages: {error}", param="messages") from None
            return encode(served, text or "", "text")

        tokens = await self.aside.run(read)
        first: KeptState | None = None if body.state is None else served.states.get(body.state)
        if len(tokens) > self.limits.prompt or not tokens:
            raise ApiError(400, f"text: from 1 to {self.limits.prompt} tokens", param="text")
        return JSONResponse(await unless_left(request, self._kept(served, tokens, first)), 201)

    async def _kept(self, served: Served, tokens: list[int], before: KeptState | None) -> dict[str, Any]:
        first: First | None = None if before is None else before.first
        answers = AnswerStream(served, asyncio.get_running_loop())
        try:
            answers.submit([TextJob(tokens, answers.sink(0), most=0, keep=True, first=first)])
            async for _ in answers.events():
                pass
        finally:
            answers.close()
        done = answers.done[0]
        if done.state is None:
            raise ApiError(500, "no state came of it", code="generation_failed")
        return served.states.put(
            done.prompt + (0 if before is None else before.tokens), done.state, done.logits
        ).about()

    async def states(self, request: Request) -> Response:
        """GET /v1/states"""
        served = await self._served(request.query_params.get("model"))
        return JSONResponse({"object": "list", "data": [kept.about() for kept in served.states.all()]})

    async def load_state(self, request: Request) -> Response:
        """POST /v1/states/load: the body is a file that was saved before."""
        served = await self._served(request.query_params.get("model"))
        body = await request.body()
        return JSONResponse((await self.aside.run(served.states.from_file, body, served.model)).about(), 201)

    async def save_state(self, request: Request) -> Response:
        """GET /v1/states/{id}/file"""
        served = await self._served(request.query_params.get("model"))
        kept = served.states.get(request.path_params["id"])
        data = await self.aside.run(KeptStates.to_file, kept, served.model)
        name = f'attachment; filename="{kept.name}.state"'
        return Response(data, media_type="application/octet-stream", headers={"content-disposition": name})

    async def delete_state(self, request: Request) -> Response:
        """DELETE /v1/states/{id}"""
        served = await self._served(request.query_params.get("model"))
        served.states.delete(request.path_params["id"])
        return JSONResponse({"id": request.path_params["id"], "object": "state", "deleted": True})


def make_app(shelf: Shelf, rules: Rules, limits: RequestLimits) -> Guard:
    """The application."""
    api = Api(shelf, limits)
    routes = [
        ("GET", "/", api.page),
        ("GET", "/health", api.health),
        ("GET", "/metrics", api.metrics),
        ("GET", "/openapi.json", api.openapi),
        ("GET", "/plot", api.plot),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{id}", api.model),
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.completions),
        ("POST", "/v1/responses", api.responses),
        ("POST", "/v1/embeddings", api.embeddings),
        ("POST", "/tokenize", api.tokenize),
        ("POST", "/detokenize", api.detokenize),
        ("POST", "/apply-template", api.apply_template),
        ("POST", "/v1/states", api.keep_state),
        ("GET", "/v1/states", api.states),
        ("POST", "/v1/states/load", api.load_state),
        ("GET", "/v1/states/{id}/file", api.save_state),
        ("DELETE", "/v1/states/{id}", api.delete_state),
    ]
    return Guard(
        Starlette(
            routes=[Route(path, _guarded(handler), methods=[method]) for method, path, handler in routes],
            exception_handlers={HTTPException: _http_error, Exception: _own_error},
        ),
        rules,
    )


def _guarded(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return answer(error)
        except (Left, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it

    return wrapped


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "an error"
    what = f"{detail}: {request.method} {request.url.path[:200]}"
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return answer(ApiError(status, what, code="unknown_url" if status == 404 else None, headers=headers))


async def _own_error(request: Request, error: Exception) -> Response:
    return answer(ApiError(500, f"an error of the server's own: {type(error).__name__}", code="internal_error"))
