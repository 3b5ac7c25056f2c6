"""How what a source names is asked for: one class for each kind of source that is not of this machine.

A class of `rwkvflow.documents.sources` names its own as module:function, imported when it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from rwkvflow.base.errors import FetchError
from rwkvflow.base.named import named
from rwkvflow.documents.sources import Source, WebSource, public_url
from rwkvflow.net.http import Connection, netrc_login, retrying, temporary


@dataclass(frozen=True)
class PinnedFile:
    """What is known of a file before it is downloaded; None where the server does not say."""

    source: Source  # so exactly that the content cannot change, where the place has names for that
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a folder: `at` is the folder, pinned; the names are relative to it."""

    at: str
    names: tuple[str, ...]


class RemoteSource(ABC):
    """A source, ready to be asked for.

    name    what messages call it
    url     where its bytes are
    """

    name: str
    url: str

    def authorize(self, url: str) -> Mapping[str, str]:
        """Headers that may go to exactly this URL."""
        return netrc_login(url)

    def explain(self, status: int, headers: Mapping[str, str]) -> FetchError | None:
        """What an error answer of the place itself means; None: what the status means everywhere."""
        return None

    def told_sha256(self, headers: Mapping[str, str]) -> str | None:
        """The sha256 (hex) of the file, where an answer's headers say it."""
        return None

    @abstractmethod
    def look(self, connection: Connection, sha256: str | None) -> PinnedFile:
        """Pin the file, without downloading it; `sha256` is what it should be, if that is known. Raises FetchError."""

    def listing(self, connection: Connection) -> Listing | None:
        """The files of the folder that the source names; None where it names a file. Raises FetchError."""
        return None


def remote_of(source: Source) -> RemoteSource:
    """How a source that is not of this machine is asked for. Raises FetchError."""
    if source.remote is None:
        raise FetchError(f"{source} is a file of this machine")
    made: RemoteSource = named(source.remote)(source)
    return made


class WebRemote(RemoteSource):
    """A file of a web server."""

    def __init__(self, source: WebSource) -> None:
        self.source, self.url, self.name = source, source.url, public_url(source.url)

    def look(self, connection: Connection, sha256: str | None) -> PinnedFile:
        """What HEAD tells of the size; the sha256 is nobody's but the lock's."""
        if sha256 is None:
            return PinnedFile(self.source, None, None)

        def ask() -> int | None:
            with connection.request("HEAD", self.url, {}, self.authorize) as (response, _):
                if problem := temporary(response, self.name):
                    raise problem
                length = response.headers.get("content-length", "")
                page = response.headers.get("content-type", "").startswith("text/html")
                return int(length) if response.status_code == 200 and length.isdecimal() and not page else None

        size = retrying(ask, connection)
        return PinnedFile(self.source, size, None if size is None else sha256)
