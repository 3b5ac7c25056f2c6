"""Threads for what would keep the event loop waiting: opening a model, reading a long text, making a grammar.

asyncio's own threads are waited for when the loop ends, and again when Python ends, however long they take: the slowest
grammar would decide when a server ends. Nobody waits for these.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

MOST = 8  # at once; who comes later waits in the event loop, where waiting can be ended
T = TypeVar("T")
A = TypeVarTuple("A")


class Aside:
    """For one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._free = asyncio.Semaphore(most)

    async def run(self, function: Callable[[*A], T], *arguments: *A) -> T:
        """What the function returns or raises. Who is cancelled while it waits leaves the thread to itself."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def tell(result: T | None, error: BaseException | None) -> None:
            self._free.release()
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, result, error)

        threading.Thread(target=work, name="aside of the event loop", daemon=True).start()
        return await outcome
