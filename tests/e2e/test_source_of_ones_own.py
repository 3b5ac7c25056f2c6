"""A kind of source is one class and one entry: a recipe may name it, a lock pins it, a fetch brings its bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rwkvflow.documents.sources import SOURCES, Source, SourceError, WebSource, is_remote, parse_source, source_problem
from rwkvflow.lock.files import Files
from rwkvflow.net.download import fetch_file
from rwkvflow.net.http import Connection, Policy
from rwkvflow.net.remote import Listing, PinnedFile, RemoteSource, remote_of
from rwkvflow.release.provenance.materials import public_uri
from rwkvflow.store.store import Store

DATA = b"some weights"
NEWEST = "7"
PORTS: list[int] = []


@dataclass(frozen=True)
class DeskSource(Source):
    """A drawer of a desk, or a file in it; the number is the day."""

    schemes = ("desk",)
    example = "desk://"
    remote = f"{__name__}:DeskRemote"
    folders = True

    path: str
    day: str = ""

    @classmethod
    def parse(cls, text: str, folder: bool) -> DeskSource:
        path, _, day = text.removeprefix("desk://").partition("@")
        if not path:
            raise SourceError("no drawer")
        return cls(path, day)

    def __str__(self) -> str:
        return f"desk://{self.path}" + (f"@{self.day}" if self.day else "")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def pinned_by(self, found: Source) -> bool:
        return isinstance(found, DeskSource) and found.path == self.path and found.day != ""


class DeskRemote(RemoteSource):
    def __init__(self, source: DeskSource) -> None:
        self.source, self.name = source, str(source)
        self.url = f"http://127.0.0.1:{PORTS[0]}/{source.path}"

    def look(self, connection: Connection, sha256: str | None) -> PinnedFile:
        digest = hashlib.sha256(DATA).hexdigest()
        return PinnedFile(replace(self.source, day=NEWEST), len(DATA), digest)

    def listing(self, connection: Connection) -> Listing | None:
        return None


@pytest.fixture(autouse=True)
def listed() -> Iterator[None]:
    SOURCES.append(DeskSource)
    yield
    SOURCES.remove(DeskSource)


@pytest.fixture
def desk() -> Iterator[list[str]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    PORTS.append(server.server_address[1])
    yield asked
    PORTS.clear()
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_is_understood_and_what_is_wrong_is_said() -> None:
    assert parse_source("desk://a/m.pth") == DeskSource("a/m.pth")
    assert is_remote("desk://a")
    assert source_problem("desk://") == "no drawer"
    assert source_problem("DESK://a") == "the scheme must be lower case: desk://"
    assert "lacks the //" in str(source_problem("desk:a"))
    assert "known are hf://, https://, file: and paths, desk://" in str(source_problem("shop://a"))
    assert public_uri("desk://a/m.pth") == "desk://a/m.pth"


def test_a_lock_pins_it_and_a_fetch_brings_it(tmp_path: Path, desk: list[str]) -> None:
    files = Files(tmp_path, Store(tmp_path / "store"), lambda event: None, threading.Event(), Policy(attempts=1))
    pinned = files.file("m", "desk://a/m.bin", None, None)
    assert (pinned.resolved, pinned.size) == (f"desk://a/m.bin@{NEWEST}", len(DATA))
    assert parse_source(pinned.source).pinned_by(parse_source(pinned.resolved))
    assert desk == []
    fetch_file(pinned.resolved, tmp_path / "m.bin", sha256=pinned.sha256, size=pinned.size, recipe_folder=tmp_path)
    assert (tmp_path / "m.bin").read_bytes() == DATA
    assert desk == ["/a/m.bin"]


def test_every_kind_names_how_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for text in ("hf://o/n/m.pth", "https://host/m.pth?x=1"):
        assert remote_of(parse_source(text)).url.endswith(("/o/n/resolve/main/m.pth", "://host/m.pth?x=1"))
    assert WebSource("https://host/a/m.pth?x=1").name == "m.pth"
