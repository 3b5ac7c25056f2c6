"""Publish to a folder of any file system that fsspec opens, such as s3://, gs:// or sftp://.

Such places have no rename that swaps folders, so a release cannot appear all at once. Instead SHA256SUMS says that a
release is whole: it is removed before anything is changed and written after all else. A publishing that was cut short
leaves a folder that `rwkvflow verify` takes for no release, never one that passes for something it is not. What has
arrived is remembered in .rwkvflow.json there and not sent again.

Credentials are those of the file system's own package, from the user's environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from rwkvflow.base.errors import PublishError, RwkvflowError
from rwkvflow.base.hashing import CHUNK
from rwkvflow.documents.destinations import RemoteDestination
from rwkvflow.net.http import scrub
from rwkvflow.net.progress import Told
from rwkvflow.publish.base import Changes, FileChange, Given, Proven, Published, content, refuse_others
from rwkvflow.release.artifacts import ReleaseFile
from rwkvflow.release.names import STATE, SUMS
from rwkvflow.release.release import Release
from rwkvflow.store.address import ask_for_no_leave

T = TypeVar("T")
READ_BACK = 8 << 20  # bytes; larger files are read back by their size only
_TOUCHED = {"digest": "", "stamp": ""}  # of no object that there is
BUCKETS = frozenset({"abfs", "adl", "az", "gcs", "gs", "oss", "s3", "s3a", "tos"})  # have no folders to make
SAVED_EVERY = 64 << 20  # bytes after which what has arrived is noted


def publisher(place: RemoteDestination, given: Given) -> RemoteFolderPublisher:
    """As RemoteDestination names it."""
    return RemoteFolderPublisher(place.url)


class RemoteFolderPublisher:
    """A folder below a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._proven = Proven()
        self._name: str | None = None  # of the release that the folder says it holds
        try:
            import fsspec

            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            ask_for_no_leave(self._fs)
        except (ImportError, ValueError) as error:
            raise PublishError(
                f"{self.url} needs a package that is not installed: {error}",
                remedy="for s3://: pip install 'rwkvflow[s3]'; for others, what it names",
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise PublishError(f"{self.url} cannot be opened: {_words(error)}") from error
        self._root = str(root).rstrip("/")

    def plan(self, release: Release) -> Changes:
        """By what the folder remembers of each file, and whether it is still the same object."""
        there, writes, deletes = self._compare(release)
        changes = [FileChange("replace" if file.path in there else "add", file.path, file.size) for file in writes]
        changes += [FileChange("delete", path) for path in deletes]
        return Changes(self.url, tuple(changes), len(release.files) - len(writes))

    def apply(self, release: Release, told: Told) -> Published:
        """Take the seal off, change what differs, read back, put the seal on. Raises PublishError."""
        there, writes, deletes = self._compare(release)
        if writes or deletes:
            self._change(release, there, writes, deletes, told)
        facts = {"files": str(len(release.files)), "changed": str(len(writes) + len(deletes))}
        return Published(self.url, facts)

    # ---- what there is -----------------------------------------------------------------------------------------

    def _compare(self, release: Release) -> tuple[dict[str, dict[str, Any]], list[ReleaseFile], list[str]]:
        """(what of ours is there as it was sent, files to write, paths to delete)."""
        found = self._list()
        remembered = self._state()
        if found and not remembered:
            raise PublishError(
                f"{self.url} holds files that rwkvflow did not publish, e.g. {min(found)}",
                remedy="name an empty or new folder in publish.to",
            )
        refuse_others(self.url, self._name, release)
        foreign = sorted(file.path for file in release.files if file.path in found and file.path not in remembered)
        if foreign:
            raise PublishError(
                f"{self.url} holds {foreign[0]}, which rwkvflow did not publish, and the release has one of this name",
                remedy="move it away, or name another folder in publish.to",
            )
        there = {
            path: entry
            for path, entry in remembered.items()
            if path in found and isinstance(entry, dict) and entry.get("stamp") == self._stamp(path)
        }
        new = {file.path: file for file in release.files}
        writes = [file for file in release.files if there.get(file.path, {}).get("digest") != file.digest]
        deletes = sorted(path for path in remembered if path not in new and path in found)
        return there, writes, deletes

    def _list(self) -> set[str]:
        def ask() -> set[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root)
            except FileNotFoundError:
                return set()
            prefix = len(self._root) + 1
            return {str(path)[prefix:] for path in found if str(path)[prefix:] not in ("", STATE)}

        return self._try("listing it", ask)

    def _state(self) -> dict[str, Any]:
        """Path → {"digest", "stamp"} as the folder remembers."""

        def ask() -> dict[str, Any]:
            try:
                value = json.loads(self._fs.cat_file(self._path(STATE)))
            except (FileNotFoundError, ValueError, RecursionError):
                return {}
            name = value.get("name") if isinstance(value, dict) else None
            self._name = name if isinstance(name, str) else None
            files = value.get("files") if isinstance(value, dict) else None
            return files if isinstance(files, dict) else {}

        return self._try("reading what it holds", ask)

    def _stamp(self, path: str) -> str:
        """Changes when the object does: its ETag where there is one, else what its file system knows of it."""

        def ask() -> str:
            info = self._fs.info(self._path(path))
            return f"{info.get('size')}:{self._fs.checksum(self._path(path))}"

        return self._try(f"looking at {path}", ask)

    # ---- changes -----------------------------------------------------------------------------------------------

    def _change(
        self,
        release: Release,
        there: dict[str, dict[str, Any]],
        writes: list[ReleaseFile],
        deletes: list[str],
        told: Told,
    ) -> None:
        self._name = release.name
        # Noted before it is touched, so that whatever is left when this is cut short is known to be ours.
        noted = {path: entry for path, entry in there.items() if path != SUMS}
        noted |= {path: dict(_TOUCHED) for path in (*deletes, *(file.path for file in writes))}
        self._save(noted)
        self._remove(SUMS)
        total, done, unsaved = sum(file.size for file in writes), 0, 0
        told.progress(0, total)
        for path in deletes:
            told.check()
            self._remove(path)
            del noted[path]
        seal = [file for file in release.files if file.path == SUMS]
        for file in [*(file for file in writes if file.path != SUMS), *seal]:
            told.check()
            self._proven.check(file)
            if file in seal:
                self._save(noted)
            self._write(file, told, done, total)
            noted[file.path] = {"digest": file.digest, "stamp": self._stamp(file.path)}
            done, unsaved = done + file.size, unsaved + file.size
            if unsaved >= SAVED_EVERY or file in seal:
                self._save(noted)
                unsaved = 0

    def _write(self, file: ReleaseFile, told: Told, done: int, total: int) -> None:
        def send() -> None:
            path = self._path(file.path)
            self._folder(path.rpartition("/")[0])
            if isinstance(file.source, bytes):
                self._fs.pipe_file(path, file.source)
                return
            with file.source.open("rb") as source, self._fs.open(path, "wb") as target:
                position = 0
                while chunk := source.read(CHUNK):
                    told.check()
                    target.write(chunk)
                    position += len(chunk)
                    told.progress(done + position, total)

        self._try(f"writing {file.path}", send)
        told.progress(done + file.size, total)

        def same() -> bool:
            if int(self._fs.info(self._path(file.path))["size"]) != file.size:
                return False
            return file.size > READ_BACK or bytes(self._fs.cat_file(self._path(file.path))) == content(file)

        if not self._try(f"reading {file.path} back", same):
            raise PublishError(f"{self.url}/{file.path} is not what was written", remedy="run again")

    def _remove(self, path: str) -> None:
        def remove() -> None:
            try:
                self._fs.rm_file(self._path(path))
            except FileNotFoundError:
                return

        self._try(f"removing {path}", remove)

    def _save(self, files: dict[str, Any]) -> None:
        data = json.dumps({"name": self._name, "files": files}, sort_keys=True, ensure_ascii=False).encode()

        def save() -> None:
            self._folder(self._root)
            self._fs.pipe_file(self._path(STATE), data)

        self._try("noting what it holds", save)

    def _folder(self, path: str) -> None:
        if self.url.split(":", 1)[0] not in BUCKETS:  # there it would make the bucket, which is the user's to do
            self._fs.makedirs(path, exist_ok=True)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _try(self, what: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except RwkvflowError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise PublishError(
                f"{self.url}: {what}: {_words(error)}",
                remedy="check the address, the network and your login there, then run again: "
                "what has arrived is not sent again",
            ) from error


def _words(error: Exception) -> str:
    text = scrub(f"{type(error).__name__}: {error}")
    return " ".join(re.sub(r"(?i)(signature|credential|token|key)=[^&\s]+", r"\1=***", text).split())[:300]
