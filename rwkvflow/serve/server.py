"""The server's process: uvicorn, with limits on how long a client may be silent, and an end that ends answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
PATIENCE = 60.0  # seconds for a client to take what waits for it
CLOSING_SECONDS = 10  # for answers that are being sent when the server ends
LAST_SECONDS = 3.0  # then, for what is left in the event loop, and again for passes over the weights that are running
CONNECTIONS = 1024
HEAD_BYTES = 1 << 16


class Protocol(H11Protocol):
    """HTTP/1.1 of uvicorn, closing connections that say nothing, or say it too slowly, before there is a request.

    And those that take nothing of what they asked for: asyncio would keep it for them as long as they stay.
    """

    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._waits = self.loop.call_later(HEAD_SECONDS, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._waits.cancel()
        if self._stuck is not None:
            self._stuck.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Now the next request may come, in its own time."""
        super().on_response_complete()
        self._waits.cancel()
        if not self.transport.is_closing():
            self._waits = self.loop.call_later(IDLE_SECONDS + HEAD_SECONDS, self._silent)

    def pause_writing(self) -> None:
        """More waits for the client than is kept for it."""
        super().pause_writing()
        self._stuck = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            # What it has not taken yet keeps the connection until then.
            self._waits = self.loop.call_later(PATIENCE, self.transport.abort)


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
        self._once = threading.Lock()
        self.left: list[str] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        if self.started and self._started_at is not None:
            host, port = self.address
            self._started_at(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to end. Nothing is waited for without a limit then; `left` names what did not end.

        `asyncio.run` waits for tasks and threads as long as they take.
        """
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            try:
                loop.run_until_complete(self.serve(sockets))
            finally:
                self.left = loop.run_until_complete(_end_tasks())
                for name in self.left:
                    logging.getLogger("uvicorn.error").error("left behind: %s", name)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends answers, and waits until they are sent."""
        self.end()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends answers and waits for their last words; a second one does not wait."""
        # No thread is started here: what the signal came into may hold the lock that this takes.
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """From any thread: ends answers, then the server."""
        with self._once:
            if self._ending is None:
                self._ending = threading.Thread(target=self.shelf.close, name="closing models", daemon=True)
                self._ending.start()
        self.should_exit = True

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) that it listens on, once it has started."""
        sockets: list[Any] = [s for server in self.servers for s in server.sockets]
        host, port = sockets[0].getsockname()[:2]
        return str(host), int(port)

    def finish(self, seconds: float | None = None) -> bool:
        """After `run`: whether the models are closed, after so long at most; None: LAST_SECONDS."""
        self.end()
        if self._ending is None:
            return True
        self._ending.join(0 if self.force_exit else LAST_SECONDS if seconds is None else seconds)
        return not self._ending.is_alive()


async def _end_tasks() -> list[str]:
    """Cancels every other task of this loop; what does not end of it within LAST_SECONDS, by name."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    left: set[asyncio.Task[object]] = set()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=LAST_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            await loop.shutdown_asyncgens()
    return sorted(repr(task) for task in left)
