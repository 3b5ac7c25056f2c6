"""The HTTP side: ranges, faults, a log of requests; which host answers what."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.standin.faults import Fault, Faults, Kind
from tests.standin.hub import HubRoutes
from tests.standin.storage import Storage


@dataclass
class Asset:
    """A file of the plain web server. Replace it in `StandIn.assets` to change the server's object."""

    data: bytes
    content_type: str = "application/octet-stream"
    etag: str | None = "by content"  # None: none is sent
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str | None = None
    chunked: bool = False  # no Content-Length

    @property
    def tag(self) -> str | None:
        """The ETag header."""
        return (
            f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"' if self.etag == "by content" else self.etag
        )


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; `host` is "hub" or "cdn"."""

    host: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What a route answers."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False
    chunked: bool = False

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tests kill clients on purpose; all else that goes wrong in a handler is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class StandIn:
    """The servers, started on entry and stopped on exit."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        """`folder` keeps the hub's files; with a `certificate` (PEM, with its key) the hub's host speaks https."""
        self.hub = Storage(folder)
        self.certificate = certificate
        self.tokens: dict[str, str] = {}  # token -> user
        self.assets: dict[str, Asset] = {}
        self.seen: list[Seen] = []
        self.faults = Faults()
        self.on_request: Callable[[str, Seen], None] | None = None  # told "before" and "after" the work of each
        self.multipart_from, self.part_size = 20 << 20, 8 << 20  # bytes: larger uploads come in parts of this size
        self._servers: list[_Server] = []
        self._stopping = threading.Event()

    def __enter__(self) -> StandIn:
        routes = HubRoutes(self)
        for name, address in (("hub", "127.0.0.1"), ("cdn", "127.0.0.2")):
            handler = type("Handler", (_Handler,), {"standin": self, "routes": routes, "name": name})
            server = _Server((address, 0), handler)
            if name == "hub" and self.certificate:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        """HF_ENDPOINT of the hub; plain files stand at {endpoint}/files/<name>."""
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn(self) -> str:
        """The other host."""
        return f"http://127.0.0.2:{self._servers[1].server_address[1]}"

    def url(self, name: str) -> str:
        """Address of a plain file."""
        return f"{self.endpoint}/files/{name}"

    def fault(self, kind: Kind, path: str = "", **options: Any) -> None:
        """Let the next request (or `times`) whose path matches the expression run into a fault."""
        self.faults.add(Fault(kind, re.compile(path), **options))

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past the end of the test."""
        self._stopping.wait(seconds)

    def requests(self, method: str | None = None, host: str | None = None, path: str = "") -> list[Seen]:
        """What arrived so far."""
        return [
            seen
            for seen in self.seen
            if method in (None, seen.method) and host in (None, seen.host) and re.search(path, seen.path)
        ]


class _Handler(BaseHTTPRequestHandler):
    standin: StandIn
    routes: HubRoutes
    name: str
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: else each answer waits for an acknowledgement

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        body = self._body(headers)
        seen = Seen(self.name, self.command, self.path, headers)
        self.standin.seen.append(seen)
        tell = self.standin.on_request
        if tell:
            tell("before", seen)
        fault = self.standin.faults.take(self.command, self.path)
        if fault and fault.kind == "drop":
            self.close_connection = True
            return
        if fault and fault.kind == "status":
            answer = Answer(fault.status, b'{"error":"fault"}', dict(fault.headers))
        elif fault and fault.kind == "html":
            answer = Answer(200, b"<!DOCTYPE html>\n<html><body>Log in</body></html>", {"Content-Type": "text/html"})
        else:
            answer = self._answer(body, headers)
            if tell:
                tell("after", seen)
        if fault and fault.kind == "lost":
            self.close_connection = True
            return
        try:
            self._send(answer, headers, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        path = urlsplit(self.path).path
        if path.startswith("/files/"):
            return self._asset(path.removeprefix("/files/"))
        answer = self.routes.answer(self.name, self.command, self.path, headers, body)
        return answer if isinstance(answer, Answer) else Answer.json({"error": "no such route"}, 404)

    def _asset(self, name: str) -> Answer:
        asset = self.standin.assets.get(name)
        if asset is None:
            return Answer(404, b"not here")
        if asset.redirect:
            return Answer(302, b"", {"Location": asset.redirect})
        headers = {"Content-Type": asset.content_type, **asset.headers}
        if asset.tag:
            headers["ETag"] = asset.tag
        return Answer(200, asset.data, headers, asset.ranges, asset.chunked)

    def _send(self, answer: Answer, request: Mapping[str, str], fault: Fault | None) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.get("range", ""))
        current = request.get("if-range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if asked and answer.ranges and current and not (fault and fault.kind == "no-range"):
            start, end = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
            if start > end:
                status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
            else:
                status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(body)}"
                body = body[start : end + 1]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind in ("cut", "stall", "drip"):
            self._write(body[: fault.after], answer.chunked)
            self.wfile.flush()
            if fault.kind == "stall":
                self.standin.sleep(fault.seconds)
            until = time.monotonic() + fault.seconds
            while fault.kind == "drip" and time.monotonic() < until:
                self._write(b"\0", answer.chunked)
                self.standin.sleep(0.05)
            self.close_connection = True
            return
        self._write(body, answer.chunked)
        if answer.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes, chunked: bool) -> None:
        if data and chunked:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        elif data:
            self.wfile.write(data)
