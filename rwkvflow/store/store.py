"""The store: content-addressed blobs, and an index from step key to outputs.

Layout below the root, all on one file system so that a rename is atomic:

    blobs/<aa>/<hex>        files, named by their sha256
    trees/<aa>/<hex>/       folders, named by hashing.tree_digest
    external/<hex>.json     files that stay where the user has them, with the stat() that their digest was taken at
    index/<aa>/<key>.json   Record of a finished step; its mtime is the time of last use
    last/<run>/<step>.json  what each step's key was made of in the last run of a recipe, for `explain`
    runs/<run>/<time>.jsonl the events of past runs, for `report`
    logs/<key>.log          what the step printed
    shared/<remote>/<key>   empty: the remote store has this step
    tmp/<name>/             scratch of running steps; its owner holds a lock on tmp/<name>.lock
    environments/ bases/ downloads/   kept by the host sandbox, image bootstrap and fetch

Write, fsync, rename: nothing half-written is ever visible under a final name, whatever is killed and when.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from rwkvflow.base.errors import StoreError
from rwkvflow.base.files import clear_errors, locked, read_json, remove, sync, write_json
from rwkvflow.base.hashing import file_digest, text_digest, tree_digest, walk
from rwkvflow.base.machine import AT_ONCE, EXCLUSIVE, SHARED
from rwkvflow.store.record import Output, Record, Wanted, digest_hex, parse_record, record_json


class Second(Protocol):
    """A store below the store; see rwkvflow.store.remote. None of these raises for trouble with it."""

    @property
    def id(self) -> str:
        """Tells remote stores apart; fit for a file name."""

    @property
    def mark(self) -> str:
        """Tells apart what was sent to which store, signed by whom; fit for a file name."""

    def accepts(self, key: str, record: Record) -> bool:
        """Whether a step's record that this store said counts still, by who signed it."""

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """The record of a step that somebody finished, where it is as it has to be."""

    def has(self, output: Output) -> bool:
        """Whether the bytes seem to be there."""

    def bring(self, output: Output, store: Store) -> bool:
        """Copy the bytes into the store; False where they are not there or not what they should be."""

    def send(self, key: str, record: Record, store: Store, *, contents: bool) -> bool:
        """Keep a finished step for others."""


def default_root() -> Path:
    """$RWKVFLOW_STORE, else rwkvflow/ in the user's cache folder."""
    if named := os.environ.get("RWKVFLOW_STORE"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # Its standard: a path that is not absolute is to be ignored.
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "rwkvflow"


class Store:
    """Content-addressed storage shared by all runs of one user. Safe between threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # steps run in folders of their own
        self.remote: Second | None = None
        self._seen: dict[str, Path] = {}  # by hex digest: the file of the user's that was last asked about here
        with clear_errors(f"store {root}"):
            for name in ("blobs", "trees", "external", "index", "last", "logs", "tmp", "locks", "downloads"):
                (root / name).mkdir(parents=True, exist_ok=True)

    # ---- blobs -------------------------------------------------------------------------------------------------

    def path(self, digest: str) -> Path | None:
        """Where the file or folder with this digest stands, or None. Sizes are checked by `present`."""
        name = digest_hex(digest)
        for folder in ("blobs", "trees"):
            path = self.root / folder / name[:2] / name
            if path.exists():
                return path
        return self._external(name)

    def present(self, output: Output) -> bool:
        """Whether the bytes are there, with the right size (a truncated blob counts as absent)."""
        path = self.path(output.digest)
        if path is None:
            return False
        return output.kind == "tree" or path.stat().st_size == output.size

    def put_file(self, path: Path, digest: str | None = None) -> Output:
        """Move a file of the same file system in. `digest` spares hashing where the writer is trusted."""
        with clear_errors(f"storing {path.name}"):
            digest = digest or file_digest(path)
            size = path.stat().st_size
            path.chmod(0o444)
            sync(path)
            self._place(path, self.root / "blobs" / digest_hex(digest)[:2] / digest_hex(digest))
        return Output(digest, "file", size)

    def put_tree(self, folder: Path) -> Output:
        """Move a folder in. Links out of it are refused: what is stored must be self-contained."""
        with clear_errors(f"storing {folder.name}"):
            size = 0
            for path in sorted(folder.rglob("*")):
                if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                    raise StoreError(f"{path.name}: a link that leaves its folder cannot be stored")
            for path in walk(folder):
                path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
                sync(path)
                size += path.stat().st_size
            digest = tree_digest(folder)
            self._place(folder, self.root / "trees" / digest_hex(digest)[:2] / digest_hex(digest))
        return Output(digest, "tree", size)

    def adopt(self, path: Path, digest: str) -> Output:
        """Know a file of the user's by its digest without copying it (checkpoints are large)."""
        status = path.stat()
        entry = self.root / "external" / f"{digest_hex(digest)}.json"
        known = (read_json(entry) or {}).get("files", {})
        write_json(entry, {"files": {**known, str(path.absolute()): _signature(status)}})
        self._seen[digest_hex(digest)] = path.absolute()
        return Output(digest, "file", status.st_size)

    def adopted(self, path: Path, digest: str) -> bool:
        """Whether this very file had this digest when it was last hashed, and was not touched since."""
        known = (read_json(self.root / "external" / f"{digest_hex(digest)}.json") or {}).get("files", {})
        try:
            found = bool(known.get(str(path.absolute())) == _signature(path.stat()))
        except OSError:
            return False
        if found:
            self._seen[digest_hex(digest)] = path.absolute()
        return found

    def _external(self, name: str) -> Path | None:
        """A file of the user's: that of this run's own recipe before a copy of another project's.

        The copy may go away with its project while this run reads it.
        """
        known = (read_json(self.root / "external" / f"{name}.json") or {}).get("files", {})
        own = str(self._seen.get(name, ""))
        for place in sorted(known, key=lambda place: (place != own, place)):
            with contextlib.suppress(OSError):
                if known[place] == _signature(Path(place).stat()):
                    return Path(place)
        return None

    def _place(self, source: Path, target: Path) -> None:
        """What is whole stays as it is, whatever comes under its name; what is damaged is mended."""
        target.parent.mkdir(exist_ok=True)
        if os.path.lexists(target):
            if _whole(target):
                remove(source)
                return
            if target.is_dir() or source.is_dir():
                remove(target)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove(source)  # another run stored the same folder a moment ago
        sync(target.parent)

    # ---- index -------------------------------------------------------------------------------------------------

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """The record of a finished step; its outputs may since have been collected: ask `present`.

        What a remote store said is looked at again: it counts only while that store is given, and only where it is
        what is `wanted`.
        """
        path = self._index(key)
        entry = read_json(path)
        try:
            record = None if entry is None else parse_record(entry)
        except ValueError:
            record = None
        if record is not None and record.remote:
            known = self.remote is not None and self.remote.id == record.remote and self.remote.accepts(key, record)
            record = record if known and (wanted is None or wanted.problem(record) is None) else None
        if record is None:
            return self._lookup_remote(key, wanted)
        with contextlib.suppress(OSError):
            os.utime(path)
        return record

    def _lookup_remote(self, key: str, wanted: Wanted | None) -> Record | None:
        record = self.remote.lookup(key, wanted) if self.remote else None
        if record is not None and self.remote is not None:
            record = replace(record, remote=self.remote.id)
            self.record(key, record)
            self._shared(key).touch()
        return record

    def record(self, key: str, record: Record) -> None:
        """Make a finished step known. Its outputs must be stored already."""
        with clear_errors(f"recording {record.step}"):
            self._index(key).parent.mkdir(exist_ok=True)
            write_json(self._index(key), record_json(record))

    def forget(self, key: str) -> None:
        """Remove a record, so that the step runs again."""
        self._index(key).unlink(missing_ok=True)

    def log_path(self, key: str) -> Path:
        """Where the step's output is kept as text."""
        return self.root / "logs" / f"{key}.log"

    def remember(self, run: str, step: str, parts: Mapping[str, Any]) -> None:
        """Keep what a step's key was made of in this run (`run` identifies the recipe)."""
        folder = self.root / "last" / run
        path = folder / f"{quote(step, safe='')}.json"
        if read_json(path) != dict(parts):
            folder.mkdir(exist_ok=True)
            write_json(path, dict(parts), durable=False)

    def recall(self, run: str, step: str) -> dict[str, Any] | None:
        """What `remember` kept, or None if the step never ran for this recipe."""
        return read_json(self.root / "last" / run / f"{quote(step, safe='')}.json")

    def _index(self, key: str) -> Path:
        return self.root / "index" / key[:2] / f"{key}.json"

    # ---- a second level ----------------------------------------------------------------------------------------

    def obtainable(self, output: Output) -> bool:
        """Whether the bytes are here, or seem to be in the remote store."""
        return self.present(output) or (self.remote is not None and self.remote.has(output))

    def bring(self, outputs: Iterable[Output]) -> bool:
        """Fetch what is not here from the remote store; True when all is here."""
        return all(
            self.present(output) or (self.remote is not None and self.remote.bring(output, self)) for output in outputs
        )

    def share(self, key: str, record: Record, *, contents: bool, again: bool) -> None:
        """Keep a step in the remote store too. `again`: even if that was done before."""
        if self.remote is None or (self._shared(key).exists() and not again):
            return
        if self.remote.send(key, record, self, contents=contents):
            self._shared(key).touch()

    def first_time(self, name: str) -> bool:
        """Whether this is asked for the first time here: for what a user is told once."""
        path = self.root / "shared" / name
        if path.exists():
            return False
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return True

    def _shared(self, key: str) -> Path:
        folder = self.root / "shared" / (self.remote.mark if self.remote else "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / key

    # ---- locks and scratch -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Held by every run, so that nothing is collected under its feet. Sweeps what dead runs left in tmp/."""
        with contextlib.ExitStack() as stack:
            with clear_errors("using the store"):
                stack.enter_context(locked(self.root / "locks" / "store.lock", SHARED))
                self._sweep()
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held by garbage collection. Raises StoreError while a run uses the store."""
        try:
            with contextlib.ExitStack() as stack:
                with clear_errors("using the store"):
                    stack.enter_context(locked(self.root / "locks" / "store.lock", EXCLUSIVE | AT_ONCE))
                    self._sweep()
                yield
        except BlockingIOError as error:
            raise StoreError("a run is using this store", remedy="wait until it has ended, then try again") from error

    @contextlib.contextmanager
    def working_on(self, name: str) -> Iterator[None]:
        """One process at a time for each name, e.g. a step key; waits for the other one."""
        with locked(self.root / "locks" / f"{name}.lock", EXCLUSIVE):
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed afterwards (by a later run after kill -9)."""
        folder = self.root / "tmp" / uuid.uuid4().hex
        with locked(folder.with_suffix(".lock"), EXCLUSIVE, leave=False):
            with clear_errors("making a scratch folder"):
                folder.mkdir()
            try:
                yield folder
            finally:
                remove(folder)

    def _sweep(self) -> None:
        for lock in (self.root / "tmp").glob("*.lock"):
            try:
                with locked(lock, EXCLUSIVE | AT_ONCE, leave=False):
                    remove(lock.with_suffix(""))
            except (BlockingIOError, FileNotFoundError):
                continue


def _whole(path: Path) -> bool:
    """Whether a blob or tree of the store is what its name says."""
    try:
        if path.is_symlink():
            return False
        return (tree_digest(path) if path.is_dir() else file_digest(path)) == f"sha256:{path.name}"
    except OSError:
        return False


def run_id(recipe: Path) -> str:
    """Identifies a recipe on this machine for `remember` and `recall`."""
    return text_digest(str(recipe.resolve())).removeprefix("sha256:")[:16]


def _signature(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
