"""A network that fails: passes bytes between clients and a server, until a fault comes after so many of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cut", "garbled", "slow", "gone"]
SLOW_S, SLOW_CHUNKS = 0.3, 5
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


@dataclass
class Proxy:
    """Listens on loopback. One fault at a time, which is used up once; `gone` stays until it is armed anew.

    cut: both ends get a reset; garbled: one bit of a byte is flipped; slow: the next chunks take long; gone: from then
    on nobody is connected any more.
    """

    target: tuple[str, int]
    kind: Kind | None = None
    left: int = 0  # bytes until it happens, both directions counted
    happened: bool = False
    passed: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _slow: int = 0

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def arm(self, kind: Kind | None, after: int = 0) -> None:
        with self._guard:
            self.kind, self.left, self.happened, self.passed, self._slow = kind, after, False, 0, 0

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self.kind == "gone" and self.happened:
                    _reset(client)
                    continue
                server = socket.create_connection(self.target)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sent = self._through(data)
                if sent is None:
                    _reset(source)
                    _reset(target)
                    return
                target.sendall(sent)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _through(self, data: bytes) -> bytes | None:
        """What arrives; None: the connection breaks."""
        with self._guard:
            self.passed += len(data)
            if self.kind == "gone" and self.happened:
                return None
            due = self.kind is not None and not self.happened and self.left < len(data)
            at, self.left = self.left, self.left - len(data)
            if due:
                self.happened = True
                if self.kind in ("cut", "gone"):
                    return None
                if self.kind == "garbled":
                    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                self._slow = SLOW_CHUNKS
            wait = self._slow > 0
            self._slow -= wait
        if wait:
            time.sleep(SLOW_S)
        return data


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
