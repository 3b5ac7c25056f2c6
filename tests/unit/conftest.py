"""Unit tests touch neither network nor Docker, nor the store of whoever runs them: any attempt fails, here, by name.

What a run before has left in that store (librwkv, built in a minute) would hide what a command does without it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest


class TouchedTheNetwork(AssertionError):
    """A unit test tried to open a connection."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise TouchedTheNetwork(f"a unit test tried to connect to {address!r}; move it to tests/e2e")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setenv("DOCKER_HOST", "tcp://unit-tests-touch-no-docker.invalid:1")


@pytest.fixture(scope="session")
def _empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _no_store_of_the_user(_empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKVFLOW_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(_empty))
    # Programs that a test starts get no package either, and so build no engine.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
