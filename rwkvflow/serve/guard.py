"""What every request has to pass: its host, its origin, its key, its size; and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkvflow.serve.errors import ApiError, closing

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = frozenset({"/", "/health"})  # the page, which asks for the key, and what a supervisor asks
STATE_PATH = "/v1/states/load"
BODY_SECONDS = 30.0  # for each piece of a body


@dataclass(frozen=True)
class Rules:
    """`hosts`: names that the server answers to, without a port, `*` for any. `origins`: pages of others that may call.

    `keys`: any of them is needed, unless there is none. `body`: bytes, at most; `state`: those of a state's file.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    body: int = 16 << 20
    state: int = 256 << 20
    open_paths: Collection[str] = field(default=OPEN_PATHS)


def host_name(value: str) -> str:
    """The name in a Host header, without its port and without the brackets of IPv6; lower case. "" for none."""
    try:
        return (urlsplit(f"//{value}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """An ASGI middleware. What does not pass is answered in OpenAI's shape before anything else sees it."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self.rules.origins else None

        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                _add_headers(MutableHeaders(scope=message), allowed)
            await send(message)

        try:
            self._check(scope, headers, origin)
        except ApiError as error:
            await answer(error)(scope, receive, told)
            return
        if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await told({"type": "http.response.start", "status": 204, "headers": []})
            await told({"type": "http.response.body"})
            return
        try:
            await self.app(scope, self._limited(receive, self._most(scope)), told)
        except asyncio.CancelledError:  # the server ends, and does not wait for this one any more
            if not begun:
                await answer(closing("the server is closing"))(scope, receive, told)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        rules = self.rules
        host = host_name(headers.get("host", ""))
        if "*" not in rules.hosts and host not in rules.hosts:
            raise ApiError(421, f"this server does not answer to {host or 'no'!r}", code="wrong_host")
        if origin is not None and origin not in rules.origins and not _own(origin, scope, headers):
            raise ApiError(403, "pages of other servers may not call this one", code="wrong_origin")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most(scope):
            raise ApiError(413, f"a body may have {self._most(scope)} bytes here", code="too_large")
        preflight = scope["method"] == "OPTIONS" and origin in rules.origins
        if not rules.keys or scope["path"] in rules.open_paths or preflight:
            return
        given = headers.get("authorization", "")
        key = given[7:] if given[:7].lower() == "bearer " else ""
        known = [
            hmac.compare_digest(key.encode(), each.encode()) for each in rules.keys
        ]  # all, so that time tells nothing
        if not any(known):
            message = "an API key is needed: Authorization: Bearer …" if not key else "that API key is not known"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _most(self, scope: Scope) -> int:
        """Bytes that a body may have: a state is larger than what is asked of one."""
        return max(self.rules.body, self.rules.state) if scope["path"] == STATE_PATH else self.rules.body

    def _limited(self, receive: Receive, most: int) -> Receive:
        """The body's pieces: not too many of them, and not too slowly. What comes behind the body is not waited for."""
        size, whole = 0, False

        async def limited() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"no more of the body came for {BODY_SECONDS:g} s", code="too_slow") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise ApiError(413, f"a body may have {most} bytes here", code="too_large")
            return message

        return limited


def answer(error: ApiError) -> JSONResponse:
    """The response that an error is."""
    # What is left of a body that nobody read would be taken for the next request.
    close = {"connection": "close"} if error.status in (408, 413) else {}
    return JSONResponse(error.body(), error.status, {**error.headers, **close})


def _own(origin: str, scope: Scope, headers: Headers) -> bool:
    return origin == f"{scope['scheme']}://{headers.get('host', '')}"


def _add_headers(headers: MutableHeaders, origin: str | None) -> None:
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cross-origin-resource-policy"] = "same-origin" if origin is None else "cross-origin"
    headers.add_vary_header("origin")
    if origin is not None:
        headers["access-control-allow-origin"] = origin
        headers["access-control-allow-headers"] = "authorization, content-type"
        headers["access-control-allow-methods"] = "GET, POST, DELETE"


def hosts_for(host: str, more: Iterable[str]) -> frozenset[str]:
    """The names that a server on `host` answers to: those of the loopback, the host, and further ones."""
    own = {host.lower()} if host not in ("", "0.0.0.0", "::") else set()  # noqa: S104 - compared with, not bound to
    return frozenset({*LOOPBACK, *own, *(name.lower() for name in more)})
