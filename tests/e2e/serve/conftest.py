"""A server on librwkv and the demo models, once for all tests, and small ones with other settings."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rwkvflow.serve.server as serving
from rwkvflow.cli.serve import native_tokenizer
from rwkvflow.engine.binding import Library
from rwkvflow.serve.app import make_app
from rwkvflow.serve.batching.scheduler import Settings
from rwkvflow.serve.guard import Rules
from rwkvflow.serve.openai.work import RequestLimits
from rwkvflow.serve.server import Server
from rwkvflow.serve.shelf import Shelf, find_models
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from tests.engine import librwkv

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = Settings(slots=8, queue=400, cache=64 << 20)


class Running:
    """A server in a thread of this process."""

    def __init__(self, shelf: Shelf, rules: Rules, limits: RequestLimits) -> None:
        self.shelf = shelf
        serving.CLOSING_SECONDS = 1  # clients that tests leave are not waited for
        self.server = Server(make_app(shelf, rules, limits), shelf, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < until
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.port = self.server.address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> bool:
        """Ends it; whether its models are closed as well. AssertionError where it does not end, or leaves tasks."""
        closed = self.server.finish()
        self.thread.join(20)
        if self.thread.is_alive():
            frames = sys._current_frames()
            stacks = {thread.name: frames.get(thread.ident or 0) for thread in threading.enumerate()}
            told = [f"{name}:\n{''.join(traceback.format_stack(frame))}" for name, frame in stacks.items() if frame]
            raise AssertionError("the server does not end\n" + "\n".join(told))
        assert self.server.left == []
        return closed


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Library:
    return Library(librwkv.with_zig(request.config) / "librwkv.so")


@pytest.fixture(scope="session")
def models(library: Library, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of demo models by format: the server's model, another format of it, and one of another version."""
    root = tmp_path_factory.mktemp("models")
    out = {}
    for model, kind in (("rwkv7-demo", "q8_0"), ("rwkv7-demo", "q4_0"), ("rwkv4-demo", "f16")):
        target = root / f"{model}-{kind}.bin"
        (outcome,) = convert(
            ROOT / "recipes" / "demo" / f"{model}.pth", library.path, [ConversionJob("x", f"ggml-{kind}", target)]
        )
        assert outcome.failure is None
        out[target.stem] = target
    return out


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def start(library: Library, models: dict[str, Path]) -> Iterator[Start]:
    """Start a server: settings by name, `rules`, `limits`, `names` of models, `draft`, or a `release`."""
    running: list[Running] = []

    def run(
        names: list[str] | None = None, rules: Rules | None = None, limits: RequestLimits | None = None, **more: Any
    ) -> Running:
        draft = more.pop("draft", None)
        memory = more.pop("memory", None)
        release: Path | None = more.pop("release", None)
        shelf = Shelf(
            find_models([release] if release else [models[name] for name in names or list(models)]),
            library,
            replace(SETTINGS, **more),
            threads=1,
            limit=memory,
            open_tokenizer=lambda model: native_tokenizer("auto", model),
            draft=None if draft is None else models[draft],
        )
        running.append(Running(shelf, rules or Rules(), limits or RequestLimits()))
        return running[-1]

    yield run
    for each in running:
        each.stop()


@pytest.fixture(scope="session")
def server(start: Start) -> Running:
    return start()
