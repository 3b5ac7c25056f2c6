"""Many at once: every answer is what it is alone, whoever hangs up, and nothing is left behind."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rwkvflow.engine.binding import Library

from .conftest import Running, Start
from .test_command import serving

MODEL = "rwkv7-demo-q8_0"
TEXT = "Once there was a fox who lived near the old mill and said to the hen : good morning . \n\n"
WORDS = TEXT.split(" ")
Alone = tuple[list[tuple[str, dict[str, Any]]], list[Any]]


def requests(count: int) -> list[tuple[str, dict[str, Any]]]:
    out: list[tuple[str, dict[str, Any]]] = []
    for seed in range(count):
        chance = random.Random(seed)
        text = " ".join(chance.choice(WORDS) for _ in range(chance.choice([1, 5, 20, 80])))
        body: dict[str, Any] = {
            "model": MODEL,
            "seed": seed,
            "max_tokens": chance.choice([1, 4, 12, 24]),
            "temperature": chance.choice([0.0, 0.8, 1.2]),
            "stop": chance.choice([None, "the", ["fox", "."]]),
            "frequency_penalty": chance.choice([0.0, 0.3]),
            "n": chance.choice([1, 1, 1, 2]),
        }
        if chance.random() < 0.5:
            out.append(("/v1/completions", {**body, "prompt": text, "logprobs": chance.choice([None, 1])}))
        else:
            messages = [{"role": "user", "content": text}]
            if chance.random() < 0.5:
                messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": text[:20] or "a"}]
            out.append(("/v1/chat/completions", {**body, "messages": messages}))
    return out


def ask(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["choices"], found["usage"]


def hang_up(client: httpx.Client, path: str, body: dict[str, Any], after: int) -> None:
    with client.stream(
        "POST", path, json={**body, "max_tokens": 500, "stream": True, "stop": None}, timeout=120
    ) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number >= after:
                return


@pytest.fixture(scope="module")
def alone(server: Running) -> Alone:
    """Requests of all kinds, and what each is answered while nobody else asks."""
    asked = requests(200)
    with httpx.Client(base_url=server.url) as client:
        return asked, [ask(client, *each) for each in asked]


@pytest.mark.parametrize("settings", [{}, {"lookup": True, "guesses": 4}, {"draft": "rwkv7-demo-q4_0", "guesses": 3}])
def test_200_requests_of_32_clients_are_what_they_are_alone(
    settings: dict[str, Any], start: Start, alone: Alone
) -> None:
    count = 60 if settings else 200
    asked, wanted = alone[0][:count], alone[1][:count]
    busy = start([MODEL], slots=6, **settings)
    with (
        ThreadPoolExecutor(32) as pool,
        httpx.Client(base_url=busy.url, limits=httpx.Limits(max_connections=64)) as client,
    ):
        leaving = [pool.submit(hang_up, client, *asked[i], i % 5) for i in range(0, len(asked), 10)]
        found = list(pool.map(lambda each: ask(client, *each), asked))
        for each in leaving:
            each.result()
    assert found == wanted
    (served,) = busy.shelf.opened()
    figures = served.scheduler.figures
    assert figures.cancelled > 0
    for _ in range(200):
        if not served.scheduler.working:
            break
        served.scheduler._thread.join(0.02)
    assert (served.scheduler.working, served.scheduler.waiting) == (0, 0)
    assert served.scheduler.cache.size <= served.scheduler.cache.limit
    if settings:
        assert 0 < figures.kept <= figures.guessed
    if "draft" in settings:  # the same weights in four bits say much the same
        assert figures.kept > 0.3 * figures.guessed


def resident(pid: int) -> int:
    """Bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.soak
@pytest.mark.parametrize("draft", [(), ("--draft", "lookup")])
def test_memory_stays_flat_over_ten_thousand_requests(
    draft: tuple[str, ...], models: dict[str, Path], library: Library
) -> None:
    """Of a process of its own, by 32 clients, of whom some hang up, some ask for nonsense, and some keep states."""
    options = ("--library", str(library.path), "--threads", "1", "--state-cache", "8MiB", "--queue", "400", *draft)
    asked = requests(300)
    with serving(models[MODEL], *options) as (client, process), ThreadPoolExecutor(32) as pool:

        def one(number: int) -> None:
            path, body = asked[number % len(asked)]
            body = {**body, "max_tokens": 4, "n": 1, "seed": number}
            if number % 10 == 0:
                hang_up(client, path, body, number % 3)
            elif number % 10 == 1:
                assert client.post(path, json={**body, "temperature": "hot"}).status_code == 400
            elif number % 10 == 2:
                kept = client.post("/v1/states", json={"text": f"{number} hens"}).json()["id"]
                assert client.delete(f"/v1/states/{kept}").status_code == 200
            else:
                assert client.post(path, json=body).status_code == 200

        sizes = []
        for begin in range(0, 10_000, 2000):
            list(pool.map(one, range(begin, begin + 2000)))
            sizes.append(resident(process.pid))
        print("MiB after each 2000:", [size >> 20 for size in sizes])
        assert sizes[-1] - sizes[1] < 8 << 20, sizes
        until = time.monotonic() + 20
        while (figures := client.get("/metrics").text) and f'rwkvflow_slots_used{{model="{MODEL}"}} 0.0' not in figures:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_the_second_turn_reads_only_what_is_new(server: Running) -> None:
    messages = [{"role": "user", "content": "Tell me about the old mill and the fox. " * 5}]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": MODEL, "messages": messages, "seed": 1, "max_tokens": 200, "stop": "."}
        first = client.post("/v1/chat/completions", json=body).json()
        said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
        longer = [*messages, said, {"role": "user", "content": "And then?"}]
        second = client.post("/v1/chat/completions", json={**body, "messages": longer}).json()
        edited = [*messages, said, {"role": "user", "content": "Why?"}]
        third = client.post("/v1/chat/completions", json={**body, "messages": edited}).json()
        again = client.post("/v1/chat/completions", json={**body, "messages": edited}).json()
    question = first["usage"]["prompt_tokens"] - len("Assistant:")
    assert second["rwkvflow"]["cached_tokens"] >= question
    assert third["rwkvflow"]["cached_tokens"] >= second["usage"]["prompt_tokens"] - len("And then?\n\nAssistant:") - 8
    assert again["rwkvflow"]["cached_tokens"] == third["usage"]["prompt_tokens"]
    assert again["choices"] == third["choices"]


def test_models_are_opened_and_closed_as_memory_allows(start: Start, models: dict[str, Any]) -> None:
    sizes = [path.stat().st_size for path in models.values()]
    small = start(memory=max(sizes))
    with httpx.Client(base_url=small.url, timeout=60) as client:
        texts: dict[str, str] = {}
        for name in [*models, *models]:
            body = {"model": name, "prompt": "Once", "seed": 1, "max_tokens": 80, "temperature": 1.5, "top_p": 1}
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            text = answer.json()["choices"][0]["text"]
            assert texts.setdefault(name, text) == text
            assert [served.entry.name for served in small.shelf.opened()] == [name]
    assert texts[MODEL] != texts["rwkv4-demo-f16"]  # each was asked, and not whichever was open
