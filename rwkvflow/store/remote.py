"""A second level below the store, at any fsspec URL, shared by CI jobs and colleagues.

    <url>/index/<aa>/<key>.json   Record of a finished step; written after all that it refers to
    <url>/blobs/<aa>/<hex>        files, named by their sha256
    <url>/trees/<aa>/<hex>.tar    folders, named by hashing.tree_digest; the bytes of the archive depend on it alone

Nothing in it is believed: sizes are checked before and hashes after a download, and what does not fit is ignored, told,
and made again. Only the index cannot be checked so: whoever may write there decides what a step's result is, unless
keys are given; then a record that none of them signed is not there. Of two that make the same step, the first is
recorded. Trouble with the remote never ends a run; it goes on without.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rwkvflow.base.errors import RwkvflowError, StoreError, UsageError
from rwkvflow.base.files import takes_nothing
from rwkvflow.base.hashing import file_digest, text_digest, tree_digest
from rwkvflow.store.address import of_folder, open_url, redacted
from rwkvflow.store.conditional import create, protocols
from rwkvflow.store.keys import TIME, StoreSigner, is_signed
from rwkvflow.store.leases import TTL_S, Leases
from rwkvflow.store.record import Output, Record, Wanted, digest_hex, parse_record, record_json
from rwkvflow.store.store import Store
from rwkvflow.store.tree_archive import ArchiveError, pack, unpack
from rwkvflow.store.trust import Trust, TrustedKey

T = TypeVar("T")
Tell = Callable[[str], None]
MISSING_FOR_S = 5.0  # how long an absent record is taken to stay absent
TROUBLES = 3  # in a row when reading, or when writing, and that is left alone for the rest of the run
RECORD_BYTES = 4 << 20
# These write where a reader can see half a file; object stores show an object once it is complete.
RENAMED = frozenset({"file", "local", "sftp", "ssh", "smb", "ftp", "hdfs", "arrow_hdfs", "webhdfs"})


class Damaged(Exception):
    """What came from the remote is not what its name says."""


class Remote:
    """One remote store. Methods never raise for trouble with it: they tell, and answer as if nothing were there."""

    def __init__(
        self, url: str, tell: Tell, *, write: bool = True, trust: Trust | None = None, signer: StoreSigner | None = None
    ) -> None:
        url = of_folder(url)
        self.shown = redacted(url)
        self.id = text_digest(url).removeprefix("sha256:")[:16]
        self.url = url
        self.write = write
        self.trust = trust or Trust()
        self.signer = signer
        if signer is not None and self.trust:  # what one made oneself counts
            self.trust = Trust([*self.trust.keys.values(), TrustedKey(signer.key, "you")])
        self._tell = tell
        self._guard = threading.Lock()
        self._absent: dict[str, float] = {}
        self._missing_for_s = MISSING_FOR_S
        self._damaged: set[str] = set()
        self._troubles = {"reading": 0, "writing": 0}  # a remote that may only be read is a usual thing
        self.no_room = ""  # why the store at home cannot take what this one has; "" where it could
        self._fs, self._root = open_url(url)
        self._rename = bool(RENAMED & protocols(self._fs))
        self._said: set[str] = set()

    @property
    def mark(self) -> str:
        """Tells apart what was sent to which store, signed by whom; fit for a file name."""
        return f"{self.id}-{text_digest(self.signer.key)[7:15]}" if self.signer else self.id

    def accepts(self, key: str, record: Record) -> bool:
        """Whether a step's record counts, by who signed it."""
        return self.trust.problem(key, record) is None

    def leases(self, ttl_s: float = TTL_S, round_: str = "") -> Leases:
        """For workers that share the steps of a plan; see failures for rounds.

        Raises UsageError where the store cannot do that.
        """
        if not self.write:
            raise UsageError("workers write to the store", remedy="leave out --remote-read-only")
        self._missing_for_s = 0.0  # others finish steps while we run
        return Leases(self._fs, self._root, self.shown, ttl_s=ttl_s, round_=round_)

    # ---- reading -----------------------------------------------------------------------------------------------

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """The record that somebody stored for a step key; one that is odd, or of another step, is told and unused."""
        since = self._absent.get(key)
        if since is not None and time.monotonic() - since < self._missing_for_s:
            return None
        path = self._path("index", key, ".json")
        found = self._try(f"reading {path}", lambda: self._read(path))
        if found is not None:
            try:
                record = self._dated(_record(key, found[0]), found[1])
                if distrust := self.trust.problem(key, record):
                    words = f"the record {key[:12]} does not count: {ascii(distrust)[1:-1]}"
                    self._once("distrust", f"{words}; that and others like it are made anew")
                    return None
                if wanted is not None and (problem := wanted.problem(record)):
                    raise ValueError(problem)
                return record
            except ValueError as error:
                words = ascii(str(error))[1:-1][:300]
                self._tell(f"remote store: the record {key[:12]} is damaged ({words}); ignored")
        self._absent[key] = time.monotonic()
        return None

    def _dated(self, record: Record, info: Mapping[str, Any]) -> Record:
        """The record with the time at which the store says it was written, in place of what it says itself."""
        if record.signature is None:
            return record
        found = next((info[name] for name in ("LastModified", "updated", "mtime", "created") if info.get(name)), None)
        return replace(record, signature=replace(record.signature, kept=_time(found)))

    def has(self, output: Output) -> bool:
        """Whether the bytes seem to be there; only `bring` can be sure."""
        if output.digest in self._damaged:
            return False
        info = self._try(f"looking for {output.digest}", lambda: self._info(self._place(output)))
        return info is not None and (output.kind == "tree" or info.get("size") == output.size)

    def bring(self, output: Output, store: Store) -> bool:
        """Copy the bytes into the store, if they are what their digest says."""
        if output.digest in self._damaged:
            return False
        place = self._place(output)

        def copy() -> bool:
            info = self._info(place)
            if info is None:
                return False
            with store.scratch() as folder:
                target = folder / "file"
                self._download(place, target, info.get("size"), output)
                if output.kind == "tree":
                    try:
                        unpack(target, folder / "tree", output.size)
                    except ArchiveError as error:
                        raise Damaged(str(error)) from error
                    actual = tree_digest(folder / "tree")
                    if actual != output.digest:
                        raise Damaged(f"its files hash to {actual}")
                    store.put_tree(folder / "tree")
                else:
                    actual = file_digest(target)
                    if actual != output.digest:
                        raise Damaged(f"its bytes hash to {actual}")
                    store.put_file(target, output.digest)
            return True

        try:
            return bool(self._try(f"fetching {output.digest}", copy))
        except Damaged as error:
            self._damaged.add(output.digest)
            self._tell(f"remote store: {output.digest} is damaged ({error}); ignored, it is made anew")
            return False

    def _download(self, place: str, target: Path, size: Any, output: Output) -> None:
        most = output.size if output.kind == "file" else 2 * output.size + (64 << 20)
        if isinstance(size, int) and (size > most or (output.kind == "file" and size != output.size)):
            raise Damaged(f"it has {size} bytes instead of {output.size}")
        done = 0
        with self._fs.open(place, "rb") as source, target.open("wb") as file:
            while chunk := source.read(4 << 20):
                done += len(chunk)
                if done > most:
                    raise Damaged(f"it has more than {most} bytes")
                file.write(chunk)
        if output.kind == "file" and done != output.size:
            raise Damaged(f"it ends after {done} of {output.size} bytes")

    # ---- writing -----------------------------------------------------------------------------------------------

    def send(self, key: str, record: Record, store: Store, *, contents: bool) -> bool:
        """Store a finished step: its outputs where `contents` says so, then its record. False: told why not."""
        if not self.write:
            return False

        if self.trust and self.signer is None:
            words = "nothing is sent to it: only signed records count there, and there is no key to sign with"
            self._once("unsigned", f"{words}; name one with --store-key")
            return False

        def copy() -> bool:
            for output in record.outputs.values() if contents else ():
                path = store.path(output.digest)
                if path is None:
                    return False
                self._send_output(output, path, store)
            self._record(key, record)
            self._absent.pop(key, None)
            return True

        return bool(self._try(f"sending {record.step}", copy, "writing"))

    def put(self, output: Output, path: Path, store: Store) -> bool:
        """Store the bytes of an output alone, which lie at `path`. False: told why not."""

        def copy() -> bool:
            self._send_output(output, path, store)
            return True

        return self.write and bool(self._try(f"sending {output.digest}", copy, "writing"))

    def doubt(self, outputs: Iterable[Output], *, damaged: bool) -> None:
        """Whether these are there with other bytes, as somebody found: then they are not read, but mended."""
        digests = {output.digest for output in outputs}
        self._damaged = self._damaged | digests if damaged else self._damaged - digests

    def _record(self, key: str, record: Record) -> None:
        """Write the record of a step unless there is one that counts; of two that were made at once, one stays."""
        place = self._path("index", key, ".json")
        signature = self.signer.sign(key, record) if self.signer else None
        entry = {"key": key, **record_json(replace(record, remote="", signature=signature))}
        data = json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()
        with contextlib.suppress(NotImplementedError):
            if create(self._fs, place, data):
                return
        found = self._read(place)
        known = self._standing(key, found) if found is not None else None
        if known is None:
            self._write(place, data)
        elif known.outputs != record.outputs:
            if all(self.has(output) for output in known.outputs.values()):
                by = f", signed by {known.signature.by}" if known.signature else ""
                self._tell(f"remote store: {record.step} came out otherwise here than it is recorded there{by}")
            else:
                self._write(place, data)

    def _standing(self, key: str, found: tuple[bytes, Mapping[str, Any]]) -> Record | None:
        """A record that is there already and counts; None where it is to be replaced."""
        try:
            record = self._dated(_record(key, found[0]), found[1])
        except ValueError:
            return None
        if self.trust:
            return record if self.accepts(key, record) else None
        return record if self.signer is None or is_signed(key, record) else None

    def _once(self, kind: str, text: str) -> None:
        """Tell the first of a kind: a stranger's records may be thousands."""
        with self._guard:
            told = kind in self._said
            self._said.add(kind)
        if not told:
            self._tell(f"remote store {self.shown}: {text}")

    def _send_output(self, output: Output, path: Path, store: Store) -> None:
        place = self._place(output)
        known = None if output.digest in self._damaged else self._info(place)
        if output.kind == "file":
            if known is None or known.get("size") != output.size:
                self._write(place, path)
        else:
            with store.scratch() as folder:
                archive = folder / "tree.tar"
                pack(path, archive)
                if known is None or known.get("size") != archive.stat().st_size:
                    self._write(place, archive)
        self._damaged.discard(output.digest)

    def _write(self, place: str, content: bytes | Path) -> None:
        folder, _, name = place.rpartition("/")
        at = f"{folder}/.{name}.{uuid.uuid4().hex}" if self._rename else place
        try:
            if self._rename:  # elsewhere folders need no making, and a bucket must not be made by the way
                self._fs.makedirs(folder, exist_ok=True)
            if isinstance(content, Path):
                self._fs.put_file(str(content), at)
            else:
                self._fs.pipe_file(at, content)
            if at != place:
                self._fs.mv(at, place)
        except BaseException:
            if at != place and self._fs.exists(at):
                self._fs.rm(at)
            raise

    def purge(self, signers: Collection[str]) -> int:
        """Remove the records of these signers ("": of nobody); how many there were."""

        def clear() -> int:
            count = 0
            for place in self._fs.find(f"{self._root}/index"):
                found = self._read(place)
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    signature = json.loads(found[0]).get("signature") if found else None
                    if found and (str(signature["by"]) if signature else "") in signers:
                        self._fs.rm_file(place)
                        count += 1
            return count

        return (self._try("removing records", clear, "writing") or 0) if self.write else 0

    # ---- the file system ---------------------------------------------------------------------------------------

    def _path(self, folder: str, name: str, suffix: str = "") -> str:
        return f"{self._root}/{folder}/{name[:2]}/{name}{suffix}"

    def _place(self, output: Output) -> str:
        tree = output.kind == "tree"
        return self._path("trees" if tree else "blobs", digest_hex(output.digest), ".tar" if tree else "")

    def _info(self, place: str) -> dict[str, Any] | None:
        try:
            self._fs.invalidate_cache(place.rpartition("/")[0])  # others write while we run
            return dict(self._fs.info(place))
        except FileNotFoundError:
            return None

    def _read(self, place: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """A record's bytes, and what the file system says of it."""
        try:
            with self._fs.open(place, "rb") as file:
                data = bytes(file.read(RECORD_BYTES))
                return data, getattr(file, "details", None) or (self._fs.info(place) if self.trust else {})
        except FileNotFoundError:
            return None

    def _try(self, what: str, action: Callable[[], T | None], kind: str = "reading") -> T | None:
        """What the action returns; None where the remote is in trouble. Damage is the caller's."""
        if self._troubles[kind] >= TROUBLES:
            return None
        try:
            result = action()
        except StoreError as error:
            self.no_room = error.message
            raise
        except (Damaged, RwkvflowError):
            raise
        except Exception as error:  # each kind of file system has errors of its own
            if kind == "reading" and takes_nothing(error):
                self.no_room = self._words(error)  # here, as nothing is written there
            with self._guard:
                self._troubles[kind] += 1
                count = self._troubles[kind]
            if count <= TROUBLES:
                after = f"; no more {kind} in this run" if count == TROUBLES else ""
                self._tell(f"remote store {self.shown}: {what}: {self._words(error)}{after}")
            return None
        with self._guard:
            self._troubles[kind] = 0 if self._troubles[kind] < TROUBLES else TROUBLES
        return result

    def _words(self, error: Exception) -> str:
        return " ".join(f"{type(error).__name__}: {error}".replace(self.url, self.shown).split())[:300]


def _time(found: Any) -> str:
    """A file system's time of writing as signatures have theirs; "" for none."""
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if isinstance(found, int | float):
        found = datetime.fromtimestamp(found, UTC)
    if not isinstance(found, datetime):
        return ""
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).strftime(TIME)


def _record(key: str, data: bytes) -> Record:
    """Raises ValueError for whatever is odd."""
    if len(data) >= RECORD_BYTES:
        raise ValueError(f"it has more than {RECORD_BYTES} bytes")
    try:
        entry = json.loads(data)
        if entry["key"] != key:
            raise ValueError("it is of another step")
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return replace(parse_record(entry), remote="")
