"""Responses that watch whether anybody still listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rwkvflow.serve.errors import ApiError

T = TypeVar("T")


class Left(Exception):
    """The client hung up."""


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """The outcome of `work`, which is cancelled when the client hangs up; raises Left then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Left
    finally:
        await _ended(task, gone)


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancels them and waits. Nothing of what they raise is raised here, and who waits can be cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """Server-sent events: a JSON object each, and `[DONE]` at the end, also after an error.

    `close` is called at the end, whatever it was, and so when the client hangs up; the server takes for that what a
    client does that reads nothing (rwkvflow/serve/server.py).
    `named`: each event is named by its `type`, and an error is an event; no `[DONE]`, as /v1/responses has it.
    """

    def __init__(
        self, objects: AsyncIterator[dict[str, Any]], close: Callable[[], None], *, named: bool = False
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-store", "x-accel-buffering": "no"}, "text/event-stream")
        del self.headers["content-length"]
        self._objects, self._close, self._named = objects, close, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        writing = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            await _ended(writing, gone)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            raise error

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        count = 0
        try:
            async for found in self._objects:
                await send({"type": "http.response.body", "body": self._event(found), "more_body": True})
                count += 1
        except ApiError as error:
            body = error.body()
            if self._named:
                about = {name: body["error"][name] for name in ("code", "message", "param")}
                body = {"type": "error", **about, "sequence_number": count}
            await send({"type": "http.response.body", "body": self._event(body), "more_body": True})
        end = b"" if self._named else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _event(self, found: dict[str, Any]) -> bytes:
        name = f"event: {found['type']}\n" if self._named else ""
        return f"{name}data: {json.dumps(found, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
