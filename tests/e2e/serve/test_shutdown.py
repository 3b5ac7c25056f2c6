"""Whatever a server is at when it is told to end, it ends soon, leaves nothing behind, and tells who still listens."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from rwkvflow.engine.binding import Library
from rwkvflow.engine.errors import EngineError
from rwkvflow.serve import server as serving
from rwkvflow.serve.batching.grammar import Grammars
from rwkvflow.serve.states import KeptStates

from .conftest import Running, Start
from .test_command import serving as process_of
from .test_hostile import GOOD, HEAD, MODEL

OTHER = "rwkv4-demo-f16"
LONG = {"prompt": "Once", "max_tokens": 16000, "logit_bias": {"0": -1000}}
SECONDS = 60  # more than a busy machine takes, and a tenth of what a server would that waits for anybody
FOR_EVER = 600


class Held:
    """In place of a function: it does not end until it is let go."""

    def __init__(self) -> None:
        self.begun, self.gone = threading.Event(), threading.Event()
        self.error: Exception = EngineError("it was held")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.begun.set()
        self.gone.wait(FOR_EVER)
        raise self.error


class Ending:
    """A server, clients of it in threads, and what is held."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.server, self.patch, self.stack = server, monkeypatch, stack
        self.held = Held()
        self.clients: list[Future[Any]] = []
        pool = stack.enter_context(ThreadPoolExecutor(32))
        stack.callback(self.held.gone.set)
        self._pool = pool

    def ask(self, path: str, body: Any, method: str = "POST", **more: Any) -> Future[Any]:
        kind = {"content": body} if isinstance(body, bytes) else {"json": body}
        url = f"{self.server.url}{path}"
        self.clients.append(self._pool.submit(httpx.request, method, url, timeout=60, **kind, **more))
        return self.clients[-1]

    def connect(self, sent: bytes, buffer: int | None = None) -> socket.socket:
        connection = self.stack.enter_context(socket.socket())
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(("127.0.0.1", self.server.port))
        connection.sendall(sent)
        return connection

    def stream(self, buffer: int | None = None, **more: Any) -> socket.socket:
        """A stream of which the head was read."""
        body = json.dumps({**LONG, "stream": True, **more}).encode()
        connection = self.connect(HEAD + f"{len(body)}\r\n\r\n".encode() + body, buffer)
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
        return connection

    def wait_until(self, met: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not met():
            assert time.monotonic() < until
            time.sleep(0.01)

    @property
    def scheduler(self) -> Any:
        return self.server.shelf.get(MODEL).scheduler


def grammar(it: Ending) -> None:
    it.patch.setattr(Grammars, "of_text", it.held)
    for _ in range(12):  # more than there are threads for it
        it.ask("/v1/completions", {**GOOD, "grammar": 'root ::= "yes"'})
    assert it.held.begun.wait(20)
    assert httpx.post(f"{it.server.url}/v1/completions", json=GOOD, timeout=20).status_code == 200  # nobody else waits


def text(it: Ending) -> None:
    it.patch.setattr("rwkvflow.serve.app.encode", it.held)
    it.ask("/tokenize", {"content": "x" * 100_000})
    assert it.held.begun.wait(20)


def embedding(it: Ending) -> None:
    it.patch.setattr("rwkvflow.serve.openai.completions.encode", it.held)
    it.ask("/v1/embeddings", {"input": "x"})
    assert it.held.begun.wait(20)


def state_file(it: Ending) -> None:
    it.patch.setattr(KeptStates, "from_file", it.held)
    it.ask("/v1/states/load", b"x" * 1000)
    assert it.held.begun.wait(20)


def prompt(it: Ending) -> None:
    it.ask("/v1/completions", {**LONG, "prompt": "a" * 60_000})
    it.wait_until(lambda: it.scheduler.figures.read > 0)


def opening(it: Ending) -> None:
    assert it.scheduler.model.n_layer  # is open already
    it.patch.setattr("rwkvflow.serve.shelf.Model", it.held)
    for _ in range(3):
        it.ask("/v1/completions", {**GOOD, "model": OTHER})
    assert it.held.begun.wait(20)
    assert httpx.get(f"{it.server.url}/metrics", timeout=20).status_code == 200  # nobody else waits for it
    assert httpx.post(f"{it.server.url}/v1/completions", json=GOOD, timeout=20).status_code == 200


def queue(it: Ending) -> None:
    for _ in range(20):
        it.ask("/v1/completions", LONG)
    it.wait_until(lambda: it.scheduler.waiting > 5)


def choices(it: Ending) -> None:
    it.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 8, "max_tokens": 16000})
    it.wait_until(lambda: it.scheduler.working > 0)


def silence(it: Ending) -> None:
    it.connect(b"")
    it.connect(b"GET / HTT")
    it.connect(HEAD + b'50\r\n\r\n{"prompt": ')
    kept = it.stack.enter_context(httpx.Client(base_url=it.server.url))
    assert kept.get("/health").status_code == 200
    time.sleep(0.2)


def unread(it: Ending) -> None:
    for logprobs in (None, 20):
        it.stream(4096, logprobs=logprobs)
    it.wait_until(lambda: it.scheduler.figures.generated > 300)


def leaving(it: Ending) -> None:
    for _ in range(5):
        it.stream().close()


def reading(it: Ending) -> None:
    it.stream()
    it.stream()


def sums(it: Ending) -> None:
    it.held.error = OSError("it was held")
    it.patch.setattr("rwkvflow.serve.shelf.file_digest", it.held)
    it.server.shelf.add_up()
    assert it.held.begun.wait(20)


def twice(it: Ending) -> None:
    for _ in range(4):
        threading.Thread(target=it.server.server.end).start()
    it.server.server.end()


SITUATIONS = (
    grammar,
    text,
    embedding,
    state_file,
    prompt,
    opening,
    queue,
    choices,
    silence,
    unread,
    leaving,
    reading,
    sums,
    twice,
)


@pytest.fixture
def ending(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ending]:
    monkeypatch.setattr(serving, "LAST_SECONDS", 2.0)
    for name in ("HEAD_SECONDS", "IDLE_SECONDS", "PATIENCE"):
        monkeypatch.setattr(serving, name, FOR_EVER)
    monkeypatch.setattr("rwkvflow.serve.guard.BODY_SECONDS", FOR_EVER)
    with ExitStack() as stack:
        yield Ending(start([MODEL, OTHER], slots=2), monkeypatch, stack)


def told(it: Ending) -> None:
    """Everybody who asked has heard something: an answer, an error in JSON, or that the connection is closed."""
    for client in it.clients:
        try:
            answer = client.result(10)
        except httpx.TransportError:
            continue
        assert answer.status_code in (200, 503), answer.text


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: str(each.__name__))
def test_it_ends_at_once_whatever_it_is_at(situation: Callable[[Ending], None], ending: Ending) -> None:
    situation(ending)
    begun = time.monotonic()
    assert ending.server.stop()
    assert time.monotonic() - begun < SECONDS
    told(ending)


def test_a_pass_that_does_not_end_keeps_the_server_not(ending: Ending) -> None:
    model = ending.scheduler.model
    ending.patch.setattr(model, "eval_sequences", ending.held)
    ending.ask("/v1/completions", LONG)
    assert ending.held.begun.wait(20)
    begun = time.monotonic()
    assert not ending.server.stop()
    assert time.monotonic() - begun < SECONDS
    told(ending)
    ending.held.gone.set()
    assert ending.server.server.finish(20)  # and what it left is closed once it may


@pytest.mark.parametrize(
    "signals",
    [pytest.param((signal.SIGTERM,), marks=pytest.mark.soak), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM,) * 2],
)
def test_a_process_ends_though_a_model_never_opens(
    signals: tuple[signal.Signals, ...], models: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    """The second file becomes a pipe that nobody writes to: who opens it waits for ever, in native code."""
    files = [tmp_path / "one.bin", tmp_path / "two.bin"]
    for file in files:
        file.write_bytes(models[MODEL].read_bytes())
    # One signal lets answers have their time; two do not, however long that is.
    time_left = f"from rwkvflow.serve import server; server.CLOSING_SECONDS = {1 if len(signals) == 1 else FOR_EVER}"
    with process_of(*files, "--library", library.path, "--threads", "1", before=time_left) as (client, process):
        files[1].unlink()
        os.mkfifo(files[1])
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.post, "/v1/completions", json={**GOOD, "model": "two"})
            time.sleep(0.5)
            assert not asked.done()
            assert client.get("/health").status_code == 200
            for number in signals:
                process.send_signal(number)
                time.sleep(0.3)
            assert process.wait(SECONDS) == 130
            with contextlib.suppress(httpx.TransportError):
                assert asked.result(10).status_code == 503


@pytest.mark.soak
def test_a_hundred_servers_end_on_a_busy_machine(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for _ in range(100):
            with monkeypatch.context() as patch, ExitStack() as stack:
                it = Ending(start([MODEL, OTHER], slots=2), patch, stack)
                # Who else would have a slot? Streams that are read have both until they are done, and once a text for
                # an embedding is held, so is every prompt: these come last.
                taking = (prompt, queue, choices, unread)
                found = [each for each in chance.sample(SITUATIONS[:-1], 3) if each not in taking]
                for situation in sorted(found, key=lambda each: (each is embedding, each is reading)):
                    situation(it)
                for _ in range(6):
                    it.ask("/v1/completions", {**GOOD, "stream": chance.random() < 0.5, "n": chance.randrange(1, 4)})
                time.sleep(chance.random() * 0.3)
                it.server.stop()
                told(it)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
