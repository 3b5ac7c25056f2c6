"""Unit tests touch neither the network nor Docker: any attempt fails, here, by name."""

from __future__ import annotations

import socket
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
