"""The server's process: uvicorn, with limits on how long a client may be silent, and an end that ends answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rwkvflow.serve.guard import Guard
from rwkvflow.serve.shelf import Shelf

HEAD_SECONDS = 15.0  # for the head of a request, from the connection on
IDLE_SECONDS = 30  # between requests of one connection
CLOSING_SECONDS = 10  # for answers that are being sent when the server ends
CONNECTIONS = 1024
HEAD_BYTES = 1 << 16


class Protocol(H11Protocol):
    """HTTP/1.1 of uvicorn, closing connections that say nothing, or say it too slowly, before there is a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._waits = self.loop.call_later(HEAD_SECONDS, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._waits.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Now the next request may come, in its own time."""
        super().on_response_complete()
        self._waits.cancel()
        if not self.transport.is_closing():
            self._waits = self.loop.call_later(IDLE_SECONDS + HEAD_SECONDS, self._silent)

    def _silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """When it is told to end, answers are ended, and streams say so. `started_at` hears the address once it listens."""

    def __init__(
        self, app: Guard, shelf: Shelf, host: str, port: int, started_at: Callable[[str], None] | None = None
    ) -> None:
        self.shelf, self._started_at = shelf, started_at
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                limit_concurrency=CONNECTIONS,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self._ending: threading.Thread | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        if self.started and self._started_at is not None:
            host, port = self.address
            self._started_at(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends answers and waits for their last words; a second one does not wait."""
        self.end()
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """From any thread: ends answers, then the server."""
        if self._ending is None:
            self._ending = threading.Thread(target=self.shelf.close, name="closing models")
            self._ending.start()
        self.should_exit = True

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) that it listens on, once it has started."""
        sockets: list[Any] = [s for server in self.servers for s in server.sockets]
        host, port = sockets[0].getsockname()[:2]
        return str(host), int(port)

    def finish(self) -> None:
        """After `run`: waits until the models are closed."""
        self.end()
        if self._ending is not None:
            self._ending.join()
