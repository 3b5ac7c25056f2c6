"""What waits in the server can be ended: a cancellation is never lost, and nothing waits for threads."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

import rwkvflow.serve
from rwkvflow.serve import aside, server
from rwkvflow.serve.aside import Aside
from rwkvflow.serve.guard import Guard, Rules
from rwkvflow.serve.openai.stream import Events, unless_left

SCOPE: dict[str, Any] = {
    "type": "http",
    "scheme": "http",
    "method": "POST",
    "path": "/",
    "headers": [(b"host", b"localhost")],
}


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


async def objects() -> AsyncIterator[dict[str, Any]]:
    """Some events, and then nothing more comes."""
    for number in range(4):
        yield {"number": number}
        await asyncio.sleep(0)
    await never()


async def whole() -> dict[str, Any]:
    return {str(found["number"]): found async for found in objects()}


class Client:
    """Sends a body in pieces, takes everything, and stays."""

    def __init__(self) -> None:
        self.pieces = 3

    async def receive(self) -> Any:
        await asyncio.sleep(0)
        self.pieces -= 1
        if self.pieces < 0:
            await never()
        return {"type": "http.request", "body": b"x", "more_body": self.pieces > 0}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)


def stream(client: Client) -> Awaitable[None]:
    return Events(objects(), lambda: None)(SCOPE, client.receive, client.send)


async def answer(client: Client) -> Any:
    return await unless_left(Request(SCOPE, client.receive), whole())


def guarded(client: Client) -> Awaitable[None]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await Events(objects(), lambda: None)(scope, receive, send)

    return Guard(app, Rules())(SCOPE, client.receive, client.send)


async def threaded(client: Client) -> Any:
    return await Aside().run(time.sleep, 0.2)


@pytest.mark.parametrize("work", [stream, answer, guarded, threaded], ids=lambda each: str(each.__name__))
def test_a_cancellation_ends_it_at_any_moment(work: Callable[[Client], Awaitable[Any]]) -> None:
    """Also where what it waits for comes in the same turn of the loop, which Python 3.11's wait_for mistakes."""

    async def cancelled(turns: int) -> None:
        task = asyncio.ensure_future(work(Client()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        assert done, f"cancelled after {turns} turns of the loop, it goes on"
        assert task.cancelled() or work is guarded  # which answers that the server is closing
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for turns in range(1, 60):
        asyncio.run(cancelled(turns))


def test_a_task_that_will_not_end_is_left_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LAST_SECONDS", 0.1)
    gone = False

    async def stubborn() -> None:
        while not gone:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def main() -> None:
        nonlocal gone
        task, other = asyncio.ensure_future(stubborn()), asyncio.ensure_future(never())
        await asyncio.sleep(0)
        (left,) = await server._end_tasks()
        assert "stubborn" in left
        assert other.cancelled()
        gone = True
        task.cancel()
        await task

    asyncio.run(main())


def test_threads_are_limited_and_give_back_what_they_took() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        if number % 5 == 0:
            raise ValueError(number)
        return number

    async def main() -> None:
        threads = Aside(3)
        first = asyncio.ensure_future(threads.run(work, 1))
        await asyncio.sleep(0)
        first.cancel()  # its place is free again once the thread ends
        found = await asyncio.gather(*(threads.run(work, number) for number in range(20)), return_exceptions=True)
        assert [str(each) for each in found] == [str(number) for number in range(20)]
        assert [isinstance(each, ValueError) for each in found] == [number % 5 == 0 for number in range(20)]

    asyncio.run(main())
    assert most == 3


def test_nothing_in_the_server_waits_for_threads_or_loses_a_cancellation() -> None:
    """asyncio's threads are waited for at the end; its wait_for loses cancellations; other threads end with Python."""
    folder = Path(rwkvflow.serve.__file__).parent
    assert Path(aside.__file__).parent == folder
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in {"to_thread", "run_in_executor", "wait_for", "ThreadPoolExecutor"}, f"{path}: {name}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Thread":
                assert "daemon" in {each.arg for each in node.keywords}, f"{path}:{node.lineno}"
