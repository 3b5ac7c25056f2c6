"""Hub repositories: which commit a revision is, what a file's size and sha256 are, and what went wrong.

The token goes to the endpoint's own origin and nowhere else. huggingface_hub is imported inside functions.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rwkvflow.base.errors import FetchError
from rwkvflow.base.names import path_problem
from rwkvflow.documents.names import HUB
from rwkvflow.documents.sources import HubSource
from rwkvflow.documents.yaml.nearest import did_you_mean
from rwkvflow.net.http import TEMPORARY, Connection, TemporaryProblemError, origin, retry_after, retrying, scrub
from rwkvflow.net.hub_session import install
from rwkvflow.net.remote import Listing, PinnedFile, RemoteSource

API_TIMEOUT_S = 20.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, repr=False)
class Hub:
    """Where the hub is and who asks; the token has no representation in text."""

    endpoint: str
    token: str | None

    @classmethod
    def of_environment(cls) -> Hub:
        """HF_ENDPOINT, and the token of HF_TOKEN or of `hf auth login`."""
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise FetchError("HF_HUB_OFFLINE is set", remedy="unset it to download from the hub")
        token = os.environ.get("HF_TOKEN", "").strip() or None
        if token is None and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "") not in ("1", "true"):
            token = library().get_token()
        return cls(endpoint, token)

    def url(self, source: HubSource) -> str:
        """Where the file is downloaded."""
        revision = quote(source.revision or "main", safe="")
        return f"{self.endpoint}/{source.repo}/resolve/{revision}/{quote(source.path)}"

    def authorize(self, url: str) -> Mapping[str, str]:
        """The token for URLs of the endpoint itself, nothing for any other."""
        if self.token and origin(url) == origin(self.endpoint):
            return {"Authorization": f"Bearer {self.token}"}
        return {}

    def api(self) -> Any:
        """huggingface_hub's HfApi for this endpoint and token."""
        return library().HfApi(endpoint=self.endpoint, token=self.token or False)

    def explain(self, source: HubSource, status: int, headers: Mapping[str, str]) -> FetchError:
        """What an error answer of the hub means for the person who asked for `source`."""
        code = headers.get("x-error-code", "")
        detail = scrub(headers.get("x-error-message", ""), self.token)
        page = f"{self.endpoint}/{source.repo}"
        if code == "GatedRepo":
            who = "accept its licence at {0}" if self.token else "accept its licence at {0} and set HF_TOKEN"
            return FetchError(f"{source.repo} is gated", remedy=who.format(page))
        if code == "RevisionNotFound":
            near = did_you_mean(source.revision or "main", self._revisions(source))
            return FetchError(
                f"{source.repo} has no revision {source.revision or 'main'!r}{near}",
                remedy=f"see the branches and tags at {page}",
            )
        if code == "EntryNotFound":
            return FetchError(
                f"{source.repo} has no file {source.path!r}{did_you_mean(source.path, self._files(source))}",
                remedy=f"see the files at {page}/tree/{source.revision or 'main'}",
            )
        if status == 401 and "credential" in detail.lower():
            return FetchError("the hub does not know this token", remedy="set HF_TOKEN to a valid token, or unset it")
        if code == "RepoNotFound" or status in (401, 404):
            remedy = (
                "check the name; if it is private, this token may not read it"
                if self.token
                else "check the name; if it is private, set HF_TOKEN"
            )
            return FetchError(f"there is no repository {source.repo}, or it is private", remedy=remedy)
        if status == 403:
            return FetchError(
                f"{source.repo}: access is refused{f' ({detail})' if detail else ''}",
                remedy=f"see {page}; HF_TOKEN must hold a token that may read it",
            )
        return FetchError(f"{source}: the hub answers {status}{f' ({detail})' if detail else ''}")

    def _files(self, source: HubSource) -> list[str]:
        with contextlib.suppress(Exception):  # only makes a message better
            info = self.api().model_info(source.repo, revision=source.revision, timeout=API_TIMEOUT_S)
            return [entry.rfilename for entry in info.siblings or ()]
        return []

    def _revisions(self, source: HubSource) -> list[str]:
        with contextlib.suppress(Exception):
            import httpx  # huggingface_hub's list_repo_refs takes no time limit

            url = f"{self.endpoint}/api/models/{source.repo}/refs"
            refs = httpx.get(url, headers=dict(self.authorize(url)), timeout=API_TIMEOUT_S).json()
            return [entry["name"] for kind in ("branches", "tags") for entry in refs.get(kind, ())]
        return []

    def files(self, repo: str, revision: str | None, connection: Connection) -> list[HubSource]:
        """All files of a repository, at the commit that the revision names now. Raises FetchError."""
        info = self._info(HubSource(repo, "README.md", revision), connection)
        commit = _commit(info, repo, revision)
        return [HubSource(repo, name, commit) for name in self._listed(info)]

    def sizes(self, repo: str, revision: str | None, connection: Connection) -> dict[str, int | None]:
        """The bytes of each file of a repository; None where the hub does not say. Raises FetchError."""
        info = self._info(HubSource(repo, "README.md", revision), connection, files_metadata=True)
        names = self._listed(info)
        sizes = (entry.size for entry in info.siblings or ())
        return {name: size if isinstance(size, int) else None for name, size in zip(names, sizes, strict=True)}

    def _listed(self, info: Any) -> list[str]:
        """The names of a repository's files. Raises FetchError for one that is no name of a file."""
        names = [entry.rfilename for entry in info.siblings or ()]
        for name in names:
            if not isinstance(name, str) or path_problem(name):
                raise FetchError(f"{self.endpoint}: {info.id}: a file of a repository is not called {name!a:.100}")
        return names

    def resolve(self, source: HubSource, connection: Connection) -> PinnedFile:
        """Pin the revision to a commit and ask for size and sha256, without downloading the file.

        Raises FetchError where the repository, the revision or the file is absent or may not be read.
        """
        if not source.pinned:
            info = self._info(source, connection)
            source = source.at(_commit(info, source.repo, source.revision))
        url, token = self.url(source), self.token or False
        metadata = self._call(
            lambda: library().get_hf_file_metadata(url, token=token, endpoint=self.endpoint, timeout=API_TIMEOUT_S),
            source,
            connection,
        )
        etag = (metadata.etag or "").lower()
        return PinnedFile(source, metadata.size, etag if _SHA256.fullmatch(etag) else None)

    def _info(self, source: HubSource, connection: Connection, **more: Any) -> Any:
        """What the hub says of the repository at the source's revision."""
        return self._call(
            lambda: self.api().model_info(source.repo, revision=source.revision, timeout=API_TIMEOUT_S, **more),
            source,
            connection,
        )

    def _call(self, function: Any, source: HubSource, connection: Connection) -> Any:
        from huggingface_hub import errors

        transport: tuple[type[Exception], ...] = (OSError, *transport_errors())

        def attempt() -> Any:
            try:
                return function()
            except errors.HfHubHTTPError as error:
                status = error.response.status_code
                if status in TEMPORARY:
                    after = retry_after(error.response.headers.get("retry-after"), time.time())
                    raise TemporaryProblemError(f"{source.repo}: the hub answers {status}", after) from error
                raise self.explain(source, status, error.response.headers) from error
            except errors.OfflineModeIsEnabled as error:
                raise FetchError("HF_HUB_OFFLINE is set", remedy="unset it to download from the hub") from error
            except too_many_redirects() as error:
                raise FetchError(f"{self.endpoint}: {source} is redirected without end") from error
            except transport as error:
                text = scrub(str(error), self.token) or type(error).__name__
                if "certificate verify failed" in text.lower():
                    raise FetchError(
                        f"{self.endpoint}: its certificate is not trusted: {text}",
                        remedy="let SSL_CERT_FILE name your company's certificates",
                    ) from error
                raise TemporaryProblemError(f"{self.endpoint}: {text}") from error
            except ValueError as error:  # its validators and its reading of headers
                raise FetchError(f"{source}: {scrub(str(error), self.token)}") from error
            except (TypeError, LookupError, AttributeError, RecursionError) as error:  # JSON of another shape
                raise FetchError(f"{self.endpoint}: what it says of {source} is not what a hub says") from error

        return retrying(attempt, connection)


class HubRemote(RemoteSource):
    """A file or folder of a hub repository, asked for as the environment says."""

    def __init__(self, source: HubSource) -> None:
        self.source, self.name = source, str(source)
        self.hub = Hub.of_environment()
        self.url = self.hub.url(source)

    def authorize(self, url: str) -> Mapping[str, str]:
        """The hub's token, for the hub alone."""
        return self.hub.authorize(url)

    def explain(self, status: int, headers: Mapping[str, str]) -> FetchError:
        """As the hub means it."""
        return self.hub.explain(self.source, status, headers)

    def told_sha256(self, headers: Mapping[str, str]) -> str | None:
        """The etag that the hub passes on for files in LFS."""
        linked = headers.get("x-linked-etag", "").strip('"').lower()
        return linked if _SHA256.fullmatch(linked) else None

    def look(self, connection: Connection, sha256: str | None) -> PinnedFile:
        """The commit, and what the hub says of the file; of small ones outside LFS it tells no sha256."""
        return self.hub.resolve(self.source, connection)

    def listing(self, connection: Connection) -> Listing | None:
        """All files below the path, at the commit that the revision names now."""
        source = self.source
        there = self.hub.files(source.repo, source.revision, connection)
        if not there or source.path in {item.path for item in there}:
            return None
        start = f"{source.path}/" if source.path else ""
        names = tuple(item.path.removeprefix(start) for item in there if item.path.startswith(start))
        if not names:
            near = did_you_mean(source.path, [item.path for item in there])
            raise FetchError(
                f"{source.repo} has no file and no folder {source.path!r}{near}",
                remedy=f"see the files at {self.hub.endpoint}/{source.repo}/tree/{source.revision or 'main'}",
            )
        return Listing(str(source.at(str(there[0].revision))), names)


def _commit(info: Any, repo: str, revision: str | None) -> str:
    if not info.sha:
        raise FetchError(f"{repo}: the hub names no commit for {revision or 'its branch'}")
    return str(info.sha)


def library() -> Any:
    """huggingface_hub, told to keep to plain HTTP, to be silent and to report nothing home."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and Path(bundle).is_file():  # its HTTP client reads only this name
        os.environ.setdefault("SSL_CERT_FILE", bundle)
    import huggingface_hub

    install(huggingface_hub)
    return huggingface_hub


def too_many_redirects() -> tuple[type[Exception], ...]:
    """What redirects without end raise, which is no trouble of the connection."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(__import__(name).TooManyRedirects)
    return tuple(found)


def transport_errors() -> tuple[type[Exception], ...]:
    """What a broken connection raises: huggingface_hub 2.x has httpx2, 1.x httpx; either may be absent."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(__import__(name).TransportError)
    return tuple(found)
