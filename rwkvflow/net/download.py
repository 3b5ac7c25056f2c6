"""Fetch one file: from a hub repository, a web server or this machine, whole and verified or not at all.

Downloads go on where an earlier process stopped (see partial); the destination appears by rename once size and
sha256 are right.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rwkvflow.base.errors import FetchError, Interrupted, StoreError
from rwkvflow.base.files import clear_errors
from rwkvflow.base.hashing import CHUNK, file_digest
from rwkvflow.documents.sources import parse_source
from rwkvflow.documents.yaml.nearest import nearest
from rwkvflow.net.git import fetch_git as fetch_git
from rwkvflow.net.git import resolve_git as resolve_git
from rwkvflow.net.http import (
    Access,
    Authorize,
    Connection,
    Policy,
    TemporaryProblemError,
    retrying,
    temporary,
)
from rwkvflow.net.partial import HEAD, PartialFile, alone
from rwkvflow.net.remote import RemoteSource, remote_of

if TYPE_CHECKING:
    import httpx

OnBytes = Callable[[int], None]  # how many more bytes there are; fewer than none where a download starts again
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class OtherBytes(FetchError):
    """What arrived is whole, and not what was asked for."""


def fetch_file(
    resolved: str,
    destination: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    recipe_folder: Path,
    on_bytes: OnBytes | None = None,
    cancel: threading.Event | None = None,
    policy: Policy | None = None,
    access: Access | None = None,
) -> tuple[str, int]:
    """Bring a file to `destination` and return its (hex sha256, size in bytes).

    `resolved` is a source as in the lock. `sha256` (64 hex digits) and `size` are what it must be; None: unknown.
    `access` says how a web server is spoken to, where the environment does not.
    An existing destination that is right is left alone, and a local file that is its own destination is only
    verified. Safe between threads and processes.

    Raises FetchError (absent, refused, not what was expected, network), StoreError (disk full), Interrupted.
    """
    source = parse_source(resolved)
    tell = on_bytes or (lambda count: None)
    with clear_errors(f"fetching {destination.name}"):
        path = source.below(recipe_folder)
        if path is not None:
            check_local(path, size)
            if destination.exists() and destination.samefile(path):
                return _verify(path, sha256, size, tell, cancel)
            destination.parent.mkdir(parents=True, exist_ok=True)
            return _copy(path, destination, sha256, size, tell, cancel)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with alone(destination, cancel):
            if sha256 is not None and _stands(destination, sha256, size):
                return sha256, destination.stat().st_size
            connected = Connection(policy or Policy(), cancel, access)
            with connected as connection, PartialFile(destination, str(source)) as part:
                return _Download(remote_of(source), part, connection, sha256, size, tell, access).run()


class _Download:
    def __init__(
        self,
        remote: RemoteSource,
        part: PartialFile,
        connection: Connection,
        sha256: str | None,
        size: int | None,
        tell: OnBytes,
        access: Access | None = None,
    ) -> None:
        self.remote, self.part, self.connection, self.tell = remote, part, connection, tell
        self.sha256, self.size = sha256, size
        self.told = 0  # bytes that `tell` knows of
        self.authorize: Authorize = access.authorize if access else remote.authorize
        self.url, self.name = remote.url, remote.name

    def run(self) -> tuple[str, int]:
        part = self.part
        while True:
            resumed = part.resumed
            if not self._complete():
                retrying(self._attempt, self.connection, lambda: part.done)
            problem = mismatch(self.name, part.sha256, part.done, self.sha256, self.size)
            if problem is None:
                part.finish()
                return part.sha256, part.done
            if not resumed:
                part.discard()
                raise problem
            part.restart()  # the older bytes may be the wrong ones: once more from the start, then it is final

    def _complete(self) -> bool:
        """Killed between the last byte and the rename: nothing to ask for where the digest proves it."""
        part = self.part
        return self.sha256 is not None and part.done > 0 and part.sha256 == self.sha256

    def _attempt(self) -> None:
        part = self.part
        headers = {"Accept-Encoding": "identity"}
        if part.done and (part.validator or self.sha256):
            headers["Range"] = f"bytes={part.done}-"
            if part.validator:
                headers["If-Range"] = part.validator
        elif part.done:
            part.restart()  # no way to tell whether it would be the same object
        with self.connection.request("GET", self.url, headers, self.authorize) as (response, hops):
            self._judge(response, hops)
            total = self._place(response)
            if total is not None and part.done >= total:
                return
            self._expect(total, [*hops, response])
            part.describe(total, _validator(response.headers))
            self._body(response, total)

    def _judge(self, response: httpx.Response, hops: list[httpx.Response]) -> None:
        """Raise unless the answer carries the file."""
        status = response.status_code
        if problem := temporary(response, self.name):
            raise problem
        if status == 416 and self.part.done:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if found and found[3] == str(self.part.done):
                return
            self.part.restart()
            raise TemporaryProblemError(f"{self.name}: the server's file has become another one")
        if status in (200, 206):
            encoding = response.headers.get("content-encoding", "identity")
            if encoding not in ("identity", ""):
                raise FetchError(f"{self.name}: the server sends it as {encoding}, although asked not to")
            refuse_pages(self.name, response.headers.get("content-type"), b"")
            return
        if not hops and (meant := self.remote.explain(status, response.headers)):
            raise meant
        remedies = {
            401: "the server wants a login: put one for this host into ~/.netrc",
            403: "the server refuses access; a signed link may have expired",
            404: "check the address",
            407: "the proxy wants a login: see HTTPS_PROXY",
            410: "the file was removed there",
        }
        raise FetchError(f"{self.name}: {status} {response.reason_phrase}".rstrip(), remedy=remedies.get(status))

    def _place(self, response: httpx.Response) -> int | None:
        """Line up the part with what the answer begins with. Returns the size of the whole file, if told."""
        part = self.part
        if response.status_code == 416:
            return part.done
        length = response.headers.get("content-length", "")
        if response.status_code == 200:
            if part.done:
                part.restart()  # changed since, or a server without ranges
            return int(length) if re.fullmatch(r"\d{1,18}", length) else None
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        total = int(found[3]) if found and found[3] != "*" else None
        another = part.validator is not None and _validator(response.headers) not in (None, part.validator)
        if not found or found[1] != str(part.done) or another or part.total not in (None, total):
            part.restart()
            raise TemporaryProblemError(f"{self.name}: the server sent another range than asked for")
        return total

    def _expect(self, total: int | None, answers: list[httpx.Response]) -> None:
        """Compare with the lock what the headers tell already, and with the disk what there is room for."""
        for answer in answers:
            told = self.remote.told_sha256(answer.headers)
            if told is not None and self.sha256 not in (None, told):
                self.part.discard()
                raise mismatch(self.name, told, total, self.sha256, self.size) or FetchError(self.name)
        if total is None:
            return
        if self.size is not None and total != self.size:
            self.part.discard()
            self.part.restart()
            raise FetchError(
                f"{self.name}: expected {self.size} bytes, the server has {total}",
                remedy="the file was replaced since the lock was made: `rwkvflow lock`, after a look at why",
            )
        need_space(self.part.destination.parent, total - self.part.done, self.part.destination.name)

    def _body(self, response: httpx.Response, total: int | None) -> None:
        part, policy = self.part, self.connection.policy
        most = self.size if total is None else total
        since, arrived = time.monotonic(), 0
        self._progress()
        for chunk in response.iter_raw():
            self.connection.check()
            if most is not None and part.done + len(chunk) > most:
                part.restart()
                raise FetchError(f"{self.name}: expected {most} bytes, the server sends more")
            part.append(chunk)
            if part.done == len(chunk) or len(part.head) < HEAD:
                self._look()
            self._progress()
            arrived += len(chunk)
            now = time.monotonic()
            if now - since > policy.stall_s:
                if arrived < policy.stall_bytes:
                    raise TemporaryProblemError(f"{self.name}: only {arrived} bytes in {policy.stall_s:g} s")
                since, arrived = now, 0
        part.flush()
        self.connection.check()
        if total is not None and part.done < total:
            raise TemporaryProblemError(f"{self.name}: the connection ended after {part.done} of {total} bytes")

    def _progress(self) -> None:
        self.tell(self.part.done - self.told)
        self.told = self.part.done

    def _look(self) -> None:
        try:
            refuse_pages(self.name, None, self.part.head)
        except FetchError:
            self.part.restart()
            raise


def refuse_pages(name: str, content_type: str | None, head: bytes) -> None:
    """Raise FetchError for an HTML page or a Git LFS pointer where a file was asked for."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if (content_type or "").lower().startswith("text/html") or start.startswith((b"<!doctype html", b"<html")):
        remedy = "open the address in a browser: a login, a licence or a proxy's page may stand before the file"
        if "/blob/" in urlsplit(name).path:
            remedy = "this is the address of a page about the file: write /resolve/ (hub) or /raw/ instead of /blob/"
        raise FetchError(f"{name}: this is an HTML page, not the file", remedy=remedy)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise FetchError(
            f"{name}: this is a Git LFS pointer, not the file",
            remedy="take the address that serves the content, or run `git lfs pull` where it is a local clone",
        )


def mismatch(name: str, got: str, got_size: int | None, sha256: str | None, size: int | None) -> FetchError | None:
    """The error for a file that is not what was expected, or None where it is."""
    if size is not None and got_size is not None and size != got_size:
        return OtherBytes(f"{name}: expected {size} bytes, got {got_size}")
    if sha256 is not None and got != sha256:
        return OtherBytes(
            f"{name}: expected sha256 {sha256}, got {got}",
            remedy="the file is damaged or was replaced; if the new one is meant, change the recipe or lock again",
        )
    return None


def need_space(folder: Path, needed: int, name: str) -> None:
    """Raise StoreError unless the disk has room for `needed` more bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{name}: {needed} bytes are needed, {free} are free",
            remedy="free some space, `rwkvflow cache gc`, or name another place with RWKVFLOW_STORE",
        )


def _stands(path: Path, sha256: str, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size) and file_digest(path) == f"sha256:{sha256}"


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range takes: a strong ETag, else the date of the last change."""
    etag = headers.get("etag", "")
    if etag.startswith('"') and len(etag) < 1000:
        return etag
    return headers.get("last-modified")


def check_local(path: Path, size: int | None) -> None:
    """Raise FetchError unless a file of this machine is there, has its size, and is no page or pointer."""
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, names)
        raise FetchError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}",
            remedy=f"did you mean {path.with_name(near)}?" if near and near != path.name else None,
        )
    total = path.stat().st_size
    if size is not None and size != total:
        raise FetchError(
            f"{path.name}: expected {size} bytes, it has {total}", remedy="`rwkvflow lock`, if it was replaced"
        )
    with path.open("rb") as file:
        refuse_pages(path.name, None, file.read(HEAD))


def _verify(
    path: Path, sha256: str | None, size: int | None, tell: OnBytes, cancel: threading.Event | None
) -> tuple[str, int]:
    def on_bytes(count: int) -> None:
        if cancel is not None and cancel.is_set():
            raise Interrupted("hashing was stopped")
        tell(count)

    got = file_digest(path, on_bytes).removeprefix("sha256:")
    total = path.stat().st_size
    if problem := mismatch(path.name, got, total, sha256, size):
        raise problem
    return got, total


def _copy(
    path: Path,
    destination: Path,
    sha256: str | None,
    size: int | None,
    tell: OnBytes,
    cancel: threading.Event | None,
) -> tuple[str, int]:
    need_space(destination.parent, path.stat().st_size, path.name)
    with alone(destination, cancel), PartialFile(destination, f"file:{path}") as part, path.open("rb") as file:
        part.restart()
        while chunk := file.read(CHUNK):
            if cancel is not None and cancel.is_set():
                part.restart()
                raise Interrupted("the copy was stopped")
            part.append(chunk)
            tell(len(chunk))
        if problem := mismatch(path.name, part.sha256, part.done, sha256, size):
            part.restart()
            raise problem
        part.finish()
        return part.sha256, part.done
