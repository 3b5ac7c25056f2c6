"""The calls of huggingface_hub that publishing needs, with patience and with errors that say what to do.

What the library raises is translated here: a 429, a 5xx and a broken connection are worth another attempt
(TemporaryProblemError), a 409 or 412 means that somebody else was first (ConflictError), all else is final.
The commit call is never repeated here: whoever lost its answer has to look first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rwkvflow.base.errors import FetchError, PublishError, RwkvflowError
from rwkvflow.documents.sources import HubSource
from rwkvflow.net.http import (
    TEMPORARY,
    Connection,
    Patience,
    Policy,
    TemporaryProblemError,
    retry_after,
    retrying,
    scrub,
)
from rwkvflow.net.hub import API_TIMEOUT_S, Hub, library, transport_errors
from rwkvflow.net.hub_session import stopped_by
from rwkvflow.net.progress import Told

T = TypeVar("T")
READ_MOST = 64 << 20  # bytes; what is read back is text


class ConflictError(Exception):
    """The branch moved, or what was to be made exists."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a commit. `sha256` where it is in LFS, else only its git blob id (SHA-1) is told."""

    size: int
    blob_id: str
    sha256: str | None


@dataclass(frozen=True)
class Head:
    """A branch as it is now."""

    commit: str
    private: bool


@dataclass(frozen=True)
class Addition:
    """A file that a commit adds: a path on this machine, or its bytes."""

    path: str
    source: str | bytes
    sha256: str
    lfs: bool | None  # None: the hub decides


class HubCalls:
    """One repository of the user's hub."""

    def __init__(self, repo: str, policy: Policy, told: Told) -> None:
        self.repo, self.policy, self.told = repo, policy, told
        try:
            self.hub = Hub.of_environment()
        except FetchError as error:
            raise PublishError(error.message, remedy="unset it to publish to the hub") from error
        if not self.hub.token:
            raise PublishError(
                f"publishing to hf://{repo} needs a token of the hub",
                remedy="set HF_TOKEN to one that may write there, or run `hf auth login`",
            )
        self.api = self.hub.api()
        self.page = f"{self.hub.endpoint}/{repo}"

    # ---- reading -----------------------------------------------------------------------------------------------

    def head(self, branch: str) -> Head | None:
        """Where a branch is; None where there is no such repository or branch."""

        def ask() -> Head | None:
            try:
                info = self.api.model_info(self.repo, revision=branch, timeout=API_TIMEOUT_S)
            except Exception as error:
                if code_of(error) in ("RepoNotFound", "RevisionNotFound"):
                    return None
                raise
            return Head(str(info.sha), bool(info.private)) if info.sha else None

        return self.patiently(ask)

    def exists(self) -> bool | None:
        """Whether the repository is there, and then whether it is private; None: it is not."""

        def ask() -> bool | None:
            try:
                return bool(self.api.model_info(self.repo, timeout=API_TIMEOUT_S).private)
            except Exception as error:
                if code_of(error) == "RepoNotFound":
                    return None
                if code_of(error) == "RevisionNotFound":
                    return False
                raise

        return self.patiently(ask)

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """All files at a commit."""

        def ask() -> dict[str, RemoteFile]:
            found = self.api.list_repo_tree(self.repo, recursive=True, revision=commit)
            return {
                item.path: RemoteFile(int(item.size), str(item.blob_id), item.lfs.sha256 if item.lfs else None)
                for item in found
                if hasattr(item, "blob_id")
            }

        return self.patiently(ask)

    def tags(self) -> dict[str, str]:
        """Tag → commit."""

        def ask() -> dict[str, str]:
            return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(self.repo).tags}

        return self.patiently(ask)

    def read(self, path: str, commit: str) -> bytes:
        """The bytes of a file at a commit. Raises PublishError where it is larger than READ_MOST."""
        source = HubSource(self.repo, path, commit)
        url = self.hub.url(source)

        def get() -> bytes:
            with connection.request("GET", url, {}, self.hub.authorize) as (response, _):
                if response.status_code in TEMPORARY:
                    after = retry_after(response.headers.get("retry-after"), time.time())
                    raise TemporaryProblemError(f"{source}: {response.status_code}", after)
                if response.status_code != 200:
                    raise self.hub.explain(source, response.status_code, response.headers)
                data = b""
                for chunk in response.iter_raw():
                    data += chunk
                    if len(data) > READ_MOST:
                        raise FetchError(f"{source} is too large to be read back")
                return data

        with Connection(self.policy, self.told.cancel) as connection:
            try:
                return retrying(get, connection)
            except FetchError as error:
                raise PublishError(error.message, remedy=error.remedy) from error

    # ---- writing -----------------------------------------------------------------------------------------------

    def create(self, private: bool | None) -> None:
        """Make the repository; well where it exists by now."""
        self.patiently(lambda: self.api.create_repo(self.repo, private=private, exist_ok=True))

    def branch(self, name: str, commit: str) -> None:
        """Make a branch; well where it exists by now."""
        self.patiently(lambda: self.api.create_branch(self.repo, branch=name, revision=commit, exist_ok=True))

    def tag(self, name: str, commit: str) -> None:
        """Set a tag. Where it exists by now, so be it: the caller looks at it."""
        self.patiently(lambda: self.api.create_tag(self.repo, tag=name, revision=commit, exist_ok=True))

    def commit(
        self,
        additions: Sequence[Addition],
        deletions: Sequence[str],
        *,
        branch: str,
        parent: str,
        message: tuple[str, str],
        on_bytes: Callable[[str, int], None],
    ) -> str:
        """Upload what the hub lacks, then commit everything at once. One attempt.

        on_bytes is told (path, how far its upload is). Raises ConflictError where the parent is not the head any
        more, TemporaryProblemError where it may or may not have been committed.
        """
        from huggingface_hub import CommitOperationDelete

        operations: list[Any] = [self._operation(addition, on_bytes) for addition in additions]
        operations += [CommitOperationDelete(path, is_folder=False) for path in deletions]
        with self._translated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on an empty README front matter; ours to know
            made = self.api.create_commit(
                self.repo,
                operations,
                commit_message=message[0],
                commit_description=message[1],
                revision=branch,
                parent_commit=parent,
                num_threads=2,
            )
        return str(made.oid)

    def _operation(self, addition: Addition, on_bytes: Callable[[str, int], None]) -> Any:
        operation = _counted(self.told, lambda position: on_bytes(addition.path, position))(
            addition.path, addition.source
        )
        if not operation.upload_info.is_hashed:
            operation.upload_info.sha256 = bytes.fromhex(addition.sha256)  # known, and proved just before
        if addition.lfs is not None:
            operation._upload_mode = "lfs" if addition.lfs else "regular"
        return operation

    # ---- errors ------------------------------------------------------------------------------------------------

    def patiently(self, function: Callable[[], T]) -> T:
        """Call until it answers. Only for calls that may be repeated. Raises PublishError, Interrupted."""

        def attempt() -> T:
            try:
                with self._translated():
                    return function()
            except ConflictError as error:
                raise PublishError(f"hf://{self.repo}: {error}", remedy="run again") from error

        return self.patience().call(attempt, self.told.check)

    def patience(self) -> Patience:
        """How calls to this repository are tried again."""
        return Patience(
            self.policy,
            PublishError,
            self.told.cancel,
            what=f"hf://{self.repo}: ",
            whose="the hub",
            again="run again: what has arrived is not sent again, and nothing is published twice",
            log=self.told.log,
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with stopped_by(self.told.cancel):
                yield
        except (RwkvflowError, TemporaryProblemError, ConflictError):
            raise
        except Exception as error:
            self.told.check()  # an upload that was stopped fails in whatever way
            raise self._translation(error) from error

    def _translation(self, error: Exception) -> Exception:
        for cause in _causes(error):
            if isinstance(cause, RwkvflowError):
                return cause
            response = getattr(cause, "response", None)
            if response is not None and isinstance(getattr(response, "status_code", None), int):
                return self._answered(int(response.status_code), response.headers)
            if isinstance(cause, json.JSONDecodeError):
                return TemporaryProblemError("the hub's answer is no JSON")
            if "certificate verify failed" in str(cause).lower():
                return PublishError(
                    f"{self.hub.endpoint}: its certificate is not trusted: {self._clean(cause)}",
                    remedy="let SSL_CERT_FILE name your company's certificates",
                )
            if isinstance(cause, transport_errors()):
                return TemporaryProblemError(self._clean(cause))
        if isinstance(error, OSError):
            return TemporaryProblemError(self._clean(error))
        return PublishError(f"hf://{self.repo}: {self._clean(error)}")

    def _answered(self, status: int, headers: Mapping[str, str]) -> Exception:
        detail = scrub(headers.get("x-error-message", ""), self.hub.token)
        said = f"{status} {detail}".strip()
        if status in TEMPORARY:
            after = retry_after(headers.get("retry-after"), time.time())
            return TemporaryProblemError(f"the hub answers {said}", after)
        if status in (409, 412):
            return ConflictError(detail or "somebody else was first")
        owner = self.repo.split("/", 1)[0]
        may_write = f"HF_TOKEN must hold a token that may write to repositories of {owner}"
        if headers.get("x-error-code") == "RepoNotFound":
            return PublishError(f"hf://{self.repo}: the hub shows this token no such repository", remedy=may_write)
        if status == 401:
            return PublishError("the hub does not know this token", remedy=may_write)
        if status == 403:
            return PublishError(f"this token may not write to hf://{self.repo}: {said}", remedy=may_write)
        if status in (402, 413):
            return PublishError(f"hf://{self.repo}: {said}", remedy=f"see the storage that {owner} has left")
        return PublishError(f"hf://{self.repo}: the hub answers {said}", remedy=f"see {self.page}")

    def _clean(self, error: BaseException) -> str:
        return " ".join(scrub(str(error) or type(error).__name__, self.hub.token).split())[:500]


def code_of(error: Exception) -> str:
    """The hub's own name for an error."""
    response = getattr(error, "response", None)
    return "" if response is None else str(response.headers.get("x-error-code", ""))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on: a failed upload is a RuntimeError with the reason inside."""
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _counted(told: Told, tell: Callable[[int], None]) -> Any:
    """huggingface_hub's CommitOperationAdd, made to say how far it is and to stop when asked to."""
    library()
    from huggingface_hub import CommitOperationAdd

    class Counted(CommitOperationAdd):
        @contextlib.contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            with super().as_file() as file:
                yield _Counting(file, told, tell)

    return Counted


class _Counting:
    """A file as HTTP clients read it."""

    def __init__(self, file: Any, told: Told, tell: Callable[[int], None]) -> None:
        self._file, self._told, self._tell = file, told, tell

    def read(self, count: int = -1) -> bytes:
        self._told.check()
        data: bytes = self._file.read(count)
        self._tell(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(io.DEFAULT_BUFFER_SIZE * 8):
            yield data
