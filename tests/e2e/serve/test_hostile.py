"""Whatever is sent: an error in OpenAI's shape or a closed connection, and others are served as before."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rwkvflow.engine import Model
from rwkvflow.engine.prompts import STOPS
from rwkvflow.engine.session import Session
from rwkvflow.engine.states import from_heads
from rwkvflow.serve import server as serving
from rwkvflow.serve.batching.grammar import Grammars
from rwkvflow.serve.guard import Rules
from rwkvflow.serve.openai.work import RequestLimits
from rwkvflow.worker.model.tokenizers import Bytes
from tests.helpers.checkpoints import array_entry, write_pth

from .conftest import Running, Start

MODEL = "rwkv7-demo-q8_0"
POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/states",
)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
GOOD = {"prompt": "Once", "seed": 1, "max_tokens": 3}


def is_error(answer: httpx.Response) -> bool:
    body = answer.json()["error"]
    return (
        answer.status_code >= 400
        and sorted(body) == ["code", "message", "param", "type"]
        and isinstance(body["message"], str)
        and isinstance(body["type"], str)
    )


@pytest.fixture(scope="module")
def client(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60)


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_requests(path: str, client: httpx.Client) -> None:
    chance = random.Random(path)
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
    ]
    bodies += [bytes(chance.randrange(256) for _ in range(chance.randrange(60))) for _ in range(40)]
    values: tuple[Any, ...] = (None, -1, [], {}, [None], [[]], [{}], True, 1e300, [10**30], "x" * 10)
    names = ("messages", "prompt", "input", "tokens", "content", "model")
    bodies += [json.dumps({name: value}).encode() for name in names for value in values]
    for body in bodies:
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert is_error(answer) if answer.status_code != 200 else answer.json(), body
        assert answer.status_code in (200, 201, 400, 404), (body, answer.text)
    plain = client.post(path, content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert is_error(plain)


def test_fields_of_the_wrong_kind_are_named(client: httpx.Client) -> None:
    for name in (
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop",
        "max_tokens",
        "stream",
        "logit_bias",
        "response_format",
        "tools",
    ):
        body = {"messages": [{"role": "user", "content": "a"}], name: {"no": "such"} if name != "logit_bias" else 5}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert str(answer.json()["error"]["param"]).startswith(name)


def test_urls_and_methods_that_are_none(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/absent", 404),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert is_error(answer)


def test_who_may_call(start: Start) -> None:
    limits = RequestLimits(prompt=50, tokens=10)
    rules = Rules(frozenset({"127.0.0.1"}), frozenset({"https://chat.example"}), ("secret", "other"), 2000, 5000)
    guarded = start([MODEL], rules=rules, limits=limits)
    with httpx.Client(base_url=guarded.url, timeout=60, headers={"authorization": "Bearer other"}) as client:
        assert client.post("/v1/completions", json=GOOD).status_code == 200
        for headers, status in (
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": ""}, 401),
            ({"authorization": "Basic other"}, 401),
            ({"authorization": "Bearer ö".encode()}, 401),
            ({"host": "evil.example"}, 421),
            ({"host": f"evil.example:{guarded.port}"}, 421),
            ({"host": "[bad"}, 421),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
        ):
            answer = client.post("/v1/completions", json=GOOD, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == status, headers
            assert is_error(answer)
            assert "access-control-allow-origin" not in answer.headers
        for origin in (guarded.url, "https://chat.example"):
            answer = client.post("/v1/completions", json=GOOD, headers={"origin": origin})
            assert answer.status_code == 200
            assert answer.headers.get("access-control-allow-origin") == (origin if "chat" in origin else None)
            assert "access-control-allow-credentials" not in answer.headers
        asks = {"origin": "https://chat.example", "access-control-request-method": "POST", "authorization": ""}
        assert client.options("/v1/completions", headers=asks).status_code == 204
        assert client.options("/v1/completions", headers={**asks, "origin": "https://evil.example"}).status_code == 403
        assert client.get("/health", headers={"authorization": ""}).status_code == 200
        assert client.get("/", headers={"authorization": ""}).status_code == 200
        assert client.get("/metrics", headers={"authorization": ""}).status_code == 401
        # Limits.
        for body, status in (
            ({"prompt": "a" * 51}, 400),
            ({"prompt": "a", "max_tokens": 11}, 400),
            ({"prompt": "a" * 3000}, 413),
        ):
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == status
            assert is_error(answer)

        def pieces() -> Any:
            for _ in range(50):
                yield b"x" * 100

        answer = client.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
        assert answer.status_code == 413
        # A state's file may be larger than a request.
        for size, status in ((4999, 400), (5001, 413)):
            assert client.post("/v1/states/load", content=b"x" * size).status_code == status
            pieced = client.post("/v1/states/load", content=iter([b"x" * 1000] * 4 + [b"x" * (size - 4000)]))
            assert pieced.status_code == status


def raw(server: Running, data: bytes, *, wait: float = 20) -> bytes:
    """Everything that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(data)
        out = b""
        try:
            while piece := connection.recv(65536):
                out += piece
                connection.settimeout(1)  # an answer came; another request would be heard
        except TimeoutError:
            assert out, "neither an answer nor an end"
        except ConnectionResetError:
            pass
        return out


def test_what_is_no_http(server: Running, client: httpx.Client) -> None:
    chance = random.Random(4)
    for data in (
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 200_000 + b"\r\n\r\n",
        bytes(chance.randrange(256) for _ in range(500)) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # TLS
        b"GET /\0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA\0: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(b"H%d: x\r\n" % i for i in range(40_000)) + b"\r\n",
        HEAD + b"5\r\nContent-Length: 6\r\n\r\n{}",
        HEAD + b"2, 3\r\n\r\n{}",
        HEAD + b"2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    ):
        answer = raw(server, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:80]
        assert client.get("/health").status_code == 200


def test_silent_and_slow_clients_are_closed_and_hurt_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr("rwkvflow.serve.guard.BODY_SECONDS", 0.5)
    server = start([MODEL])
    head = HEAD + b"50\r\n\r\n"
    begun = time.monotonic()
    assert raw(server, b"") == b""
    assert raw(server, b"GET / HTT") == b""
    assert raw(server, head + b'{"prompt": ').startswith(b"HTTP/1.1 408")
    vast = HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}")
    assert raw(server, vast).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 15
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        try:  # a byte now and then keeps no connection open
            for _ in range(40):
                connection.sendall(b"G")
                time.sleep(0.05)
            assert connection.recv(100) == b""
        except OSError:
            pass
    assert httpx.post(f"{server.url}/v1/completions", json=GOOD, timeout=60).status_code == 200


def test_who_reads_nothing_frees_the_slot(start: Start) -> None:
    server = start([MODEL], slots=1)
    body = json.dumps({"prompt": "Once", "max_tokens": 16000, "stream": True, "logit_bias": {"0": -1000}}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + f"{len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(200).startswith(b"HTTP/1.1 200")
    answer = httpx.post(f"{server.url}/v1/completions", json=GOOD, timeout=60)  # there is one slot only
    assert answer.status_code == 200
    (served,) = server.shelf.opened()
    assert served.scheduler.figures.cancelled == 1


def test_who_takes_nothing_of_an_answer_frees_the_slot(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays open, and nobody reads from it."""
    monkeypatch.setattr(serving, "PATIENCE", 0.5)
    server = start([MODEL], slots=1)
    more = {"logprobs": 20, "logit_bias": {"0": -1000}}
    body = json.dumps({"prompt": "Once", "max_tokens": 16000, "stream": True, **more}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(HEAD + f"{len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        answer = httpx.post(f"{server.url}/v1/completions", json=GOOD, timeout=60)
        assert answer.status_code == 200
        (served,) = server.shelf.opened()
        assert served.scheduler.figures.cancelled == 1
        assert time.monotonic() - begun < 30
        until = time.monotonic() + 10
        while server.server.server_state.connections:  # nor is the connection kept, nor what was written for it
            assert time.monotonic() < until
            time.sleep(0.05)


def test_who_takes_nothing_of_a_whole_answer_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 0.5)
    server = start([MODEL])
    body = json.dumps({"content": "x" * 300_000, "with_pieces": True}).encode()  # some 15 MB come of it
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(HEAD.replace(b"/v1/completions", b"/tokenize") + f"{len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        until = time.monotonic() + 20
        while server.server.server_state.connections:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_many_silent_connections_hurt_nobody(start: Start, client: httpx.Client, server: Running) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    for number, connection in enumerate(silent):
        connection.sendall(b"POST /v1/comp"[: number % 13])
    assert client.post("/v1/completions", json=GOOD).status_code == 200
    for connection in silent:
        connection.close()
    assert client.post("/v1/completions", json=GOOD).status_code == 200


def test_a_grammar_that_takes_long_keeps_nobody_waiting(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, begun, others = Grammars.of_text, threading.Event(), threading.Event()

    def of_text(self: Grammars, text: str) -> Any:
        begun.set()
        assert others.wait(60)
        return slow(self, text)

    monkeypatch.setattr(Grammars, "of_text", of_text)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.post, "/v1/completions", json={**GOOD, "grammar": 'root ::= "yes"'})
        assert begun.wait(20)
        assert client.post("/v1/completions", json=GOOD).status_code == 200
        assert not late.done()
        others.set()
        assert late.result().json()["choices"][0]["text"] == "yes"


def test_a_full_queue_answers_429(start: Start) -> None:
    server = start([MODEL], slots=1, queue=0)
    body = {"prompt": "Once", "max_tokens": 16000, "stream": True, "logit_bias": {"0": -1000}}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as busy:
        lines = busy.iter_lines()
        next(lines)
        refused = httpx.post(f"{server.url}/v1/completions", json=GOOD, timeout=60)
        assert refused.status_code == 429
        assert is_error(refused)
        assert int(refused.headers["retry-after"]) >= 1
    for _ in range(100):
        if (after := httpx.post(f"{server.url}/v1/completions", json=GOOD, timeout=60)).status_code == 200:
            break
        time.sleep(0.05)
    assert after.status_code == 200


def test_an_end_ends_streams_properly(start: Start) -> None:
    server = start([MODEL])
    body = {"prompt": "Once", "max_tokens": 16000, "stream": True, "logit_bias": {"0": -1000}}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        server.server.end()
        told = [line for line in lines if line]
    assert json.loads(told[-2].removeprefix("data: "))["error"]["code"] == "server_closing"
    assert told[-1] == "data: [DONE]"
    server.thread.join(20)
    assert not server.thread.is_alive()


def initial_file(server: Running, client: httpx.Client, folder: Path) -> bytes:
    """A .pth of trained initial states, which is begun from as the state that it is."""
    model = server.shelf.get(MODEL).model
    layer = model.state_len // model.n_layer - 2 * model.n_embd
    size = layer // model.n_embd
    rng = np.random.default_rng(1)
    states = 2 * rng.standard_normal((model.n_layer, model.n_embd // size, size, size), np.float32)
    path = folder / "states.pth"
    write_pth(path, [array_entry(f"blocks.{i}.att.time_state", values) for i, values in enumerate(states)])
    loaded = client.post("/v1/states/load", content=path.read_bytes())
    assert loaded.status_code == 201, loaded.text
    assert loaded.json()["tokens"] == 0
    with Model(model.path, model.library) as alone:
        session = Session(alone, Bytes(), seed=3)
        session.begin(from_heads(states, alone))
        session.feed("Once")
        begun = "".join(session.generate(20))
        session = Session(alone, Bytes(), seed=3)
        session.begin(from_heads(states, alone))
        session.feed("User: hi\n\nAssistant:")
        chatted = "".join(session.generate(20, STOPS)).lstrip()
    body = {"prompt": "Once", "seed": 3, "max_tokens": 20}
    plain = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    state = {"state": loaded.json()["id"]}
    for _ in range(2):
        assert client.post("/v1/completions", json={**body, **state}).json()["choices"][0]["text"] == begun != plain
    # A conversation begins with it: no turn was before.
    talk = {"messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 20, **state}
    answer = client.post("/v1/chat/completions", json=talk).json()["choices"][0]["message"]["content"]
    assert answer == chatted
    # Saved and loaded it is the same.
    file = client.get(f"/v1/states/{state['state']}/file").content
    again = client.post("/v1/states/load", content=file).json()["id"]
    assert client.post("/v1/completions", json={**body, "state": again}).json()["choices"][0]["text"] == begun
    for name in (state["state"], again):
        client.delete(f"/v1/states/{name}")
    other = client.post("/v1/states/load", params={"model": "rwkv4-demo-f16"}, content=path.read_bytes())
    assert other.status_code == 400
    return path.read_bytes()


def test_states_are_kept_saved_and_loaded(client: httpx.Client, server: Running, tmp_path: Path) -> None:
    body = {"prompt": "Once there was", "seed": 4, "max_tokens": 20}
    wanted = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    kept = client.post("/v1/states", json={"text": "Once there"})
    assert kept.status_code == 201
    state = kept.json()["id"]
    assert kept.json()["tokens"] == 10
    part = {**body, "prompt": " was", "state": state}
    assert client.post("/v1/completions", json=part).json()["choices"][0]["text"] == wanted
    more = client.post("/v1/states", json={"text": " was", "state": state}).json()
    assert more["tokens"] == 14
    assert (
        client.post("/v1/completions", json={**body, "prompt": "", "state": more["id"]}).json()["choices"][0]["text"]
        == wanted
    )
    file = client.get(f"/v1/states/{state}/file").content
    loaded = client.post("/v1/states/load", content=file).json()
    assert client.post("/v1/completions", json={**part, "state": loaded["id"]}).json()["choices"][0]["text"] == wanted
    trained = initial_file(server, client, tmp_path)
    for bad in (file[:-1], file + b"x", b"", os.urandom(300), trained[:-40], b"PK\x03\x04" + os.urandom(99)):
        answer = client.post("/v1/states/load", content=bad)
        assert answer.status_code == 400
        assert is_error(answer)
    assert client.post("/v1/states/load", params={"model": "rwkv7-demo-q4_0"}, content=file).status_code == 400
    assert client.delete(f"/v1/states/{state}").json()["deleted"] is True
    assert client.post("/v1/completions", json=part).status_code == 404
    for other in (more["id"], loaded["id"]):
        client.delete(f"/v1/states/{other}")


def test_what_else_there_is(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"content": "aé"}).json() == {"tokens": [97, 195, 169]}
    assert client.post("/detokenize", json={"tokens": [97, 195, 169]}).json() == {"content": "aé"}
    messages = [{"role": "user", "content": "hi"}]
    prompt = client.post("/apply-template", json={"messages": messages, "enable_thinking": True}).json()["prompt"]
    assert prompt == "User: hi\n\nAssistant: <think"
    text = client.get("/metrics").text
    assert f'rwkvflow_generated_total{{model="{MODEL}"}}' in text
    assert f'rwkvflow_state_cache_limit_bytes{{model="{MODEL}"}}' in text
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(POSTS) <= set(described["paths"])
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
