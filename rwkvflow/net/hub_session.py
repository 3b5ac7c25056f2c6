"""The HTTP client inside huggingface_hub: it has no time limits of its own, and nothing stops a read that waits.

Both are added here, once a process, by the library's own hook for the purpose (set_client_factory).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any

CONNECT_S, WRITE_S = 20.0, 60.0
READ_S = 300.0  # the answer to a commit may take minutes

_guard = threading.Lock()
_installed = False
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def install(library: Any) -> None:
    """Give the library's client time limits. Nothing happens where the library has become another one."""
    global _installed
    with _guard:
        if _installed:
            return
        _installed = True
        with contextlib.suppress(ImportError, AttributeError):
            from huggingface_hub.utils._http import default_client_factory

            library.set_client_factory(lambda: _patient(default_client_factory()))


def _patient(client: Any) -> Any:
    """The client with time limits, and with its sockets noted."""
    timeout = type(client.timeout)
    client.timeout = timeout(READ_S, connect=CONNECT_S, write=WRITE_S)
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _traced]}
    return client


def _traced(request: Any) -> None:
    request.extensions = {**request.extensions, "trace": note_socket}


def note_socket(event: str, info: Any) -> None:
    """A trace of httpx requests that lets `stopped_by` find their sockets."""
    if event.endswith(("connect_tcp.complete", "start_tls.complete")):
        found = info["return_value"].get_extra_info("socket")
        if found is not None:
            _sockets.add(found)


@contextlib.contextmanager
def stopped_by(cancel: threading.Event | None) -> Iterator[None]:
    """While this lasts, setting `cancel` ends every read and write of clients whose sockets were noted."""
    if cancel is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if cancel.is_set():
                for open_socket in list(_sockets):
                    with contextlib.suppress(OSError):
                        open_socket.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
