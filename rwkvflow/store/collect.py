"""Looking after the store: what is in it, whether it is intact, and what can go."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base.files import clear_errors, read_json, remove
from rwkvflow.base.hashing import file_digest, tree_digest, walk
from rwkvflow.store.store import Store

DAY = 86400.0
Look = Callable[[object], None]


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One blob or tree of the store, whose root it knows."""

    digest: str
    kind: str
    size: int
    root: Path
    part: str  # the folder in blobs/ or trees/, two digits
    steps: tuple[str, ...]  # ids of the steps that made it; empty: nothing refers to it
    used: float  # time of last use, seconds since the epoch

    @property
    def path(self) -> Path:
        """Where it stands."""
        name = self.digest.partition(":")[2]
        return self.root / ("blobs" if self.kind == "file" else "trees") / self.part / name


@dataclass(frozen=True)
class Damage:
    """A blob whose bytes are not what its name says."""

    digest: str
    path: Path
    message: str


def _each(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder of folders holds, sorted. Of a million files no list is made."""
    for part in sorted(folder.iterdir()) if folder.is_dir() else ():
        if part.is_dir():
            with os.scandir(part) as found:
                yield from sorted(found, key=lambda entry: entry.name)


def _records(store: Store) -> Iterator[tuple[Path, dict[str, object]]]:
    for entry in _each(store.root / "index"):
        if entry.name.endswith(".json"):
            yield (path := Path(entry.path)), read_json(path) or {}


def _digests(outputs: object) -> list[str]:
    """The digests in a record's outputs, whatever else may be in a damaged one."""
    values = outputs.values() if isinstance(outputs, dict) else ()
    return [str(value.get("digest")) for value in values if isinstance(value, dict)]


def forget_remote(store: Store, remote: str | None = None) -> int:
    """Drop the records that came from a remote store (its id; None: from any); how many there were."""
    count = 0
    for path, record in _records(store):
        said = record.get("remote")
        if said and remote in (None, said):
            path.unlink(missing_ok=True)
            count += 1
    return count


def forget_signed(store: Store, by: str) -> int:
    """Drop the records of remote stores that a key signed; how many there were."""
    count = 0
    for path, record in _records(store):
        signature = record.get("signature")
        if record.get("remote") and isinstance(signature, dict) and signature.get("by") == by:
            path.unlink(missing_ok=True)
            count += 1
    return count


def _binary(name: str) -> bytes:
    """A digest in half of its size; what is none stays as it is."""
    if len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return bytes.fromhex(name)
    return name.encode("utf-8", "surrogateescape")


class _Uses:
    """Which steps made a blob, and when they were last used: some 250 bytes for each."""

    def __init__(self, store: Store, on_look: Look) -> None:
        self.steps: dict[bytes, str | tuple[str, ...]] = {}
        self.used: dict[bytes, float] = {}
        self.damaged = False  # whether there is a record of nothing
        for path, record in _records(store):
            on_look(path)
            names = _digests(record.get("outputs"))
            self.damaged |= not names
            step = sys.intern(str(record.get("step")))
            for name in names:
                self._add(_binary(name.removeprefix("sha256:")), step, path.stat().st_mtime)

    def _add(self, name: bytes, step: str, used: float) -> None:
        known = self.steps.get(name)
        if known is None:
            self.steps[name] = step
        elif step != known and step not in (known if isinstance(known, tuple) else ()):
            self.steps[name] = (*((known,) if isinstance(known, str) else known), step)
        self.used[name] = max(self.used.get(name, 0.0), used)

    def of(self, name: bytes) -> tuple[str, ...]:
        """Ids of the steps, sorted."""
        known = self.steps.get(name, ())
        return (known,) if isinstance(known, str) else tuple(sorted(known))


def _contents(store: Store, uses: _Uses | None, on_look: Callable[[StoreEntry], None]) -> Iterator[StoreEntry]:
    """Everything in blobs/ and trees/, by name; with what uses it, where that was asked."""
    for kind, folder in (("file", "blobs"), ("tree", "trees")):
        for found in _each(store.root / folder):
            path, name = Path(found.path), _binary(found.name)
            status = found.stat(follow_symlinks=False)
            size = status.st_size if kind == "file" else sum(item.stat().st_size for item in walk(path))
            steps = uses.of(name) if uses else ()
            used = uses.used.get(name, status.st_mtime) if uses else status.st_mtime
            part = sys.intern(path.parent.name)
            entry = StoreEntry(f"sha256:{found.name}", kind, size, store.root, part, steps, used)
            on_look(entry)
            yield entry


def _nobody(_: object) -> None:
    """Is told, and does nothing."""


def entries(store: Store) -> list[StoreEntry]:
    """Everything in blobs/ and trees/, largest first."""
    found = _contents(store, _Uses(store, _nobody), _nobody)
    return sorted(found, key=lambda entry: (-entry.size, entry.digest))


def verify(store: Store, on_entry: Callable[[StoreEntry], None] | None = None) -> list[Damage]:
    """Hash everything; remove what is damaged, so that the next run makes it again. Entries know nothing of steps."""
    damaged = []
    for entry in _contents(store, None, on_entry or _nobody):
        actual = file_digest(entry.path) if entry.kind == "file" else tree_digest(entry.path)
        if actual != entry.digest:
            damaged.append(Damage(entry.digest, entry.path, f"its bytes hash to {actual}; removed"))
            with clear_errors(f"removing {entry.digest}, whose bytes hash to {actual}"):
                remove(entry.path)
                if os.path.lexists(entry.path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(entry.path))
    return damaged


def collect(
    store: Store,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
    on_entry: Callable[[StoreEntry], None] | None = None,
    on_look: Look | None = None,
) -> list[StoreEntry]:
    """Remove what nothing refers to, what was not used for so many days, then the oldest until it fits.

    Returns what was removed (or would be); `on_entry` is told each when it is, and `on_look` all records and files that
    are looked at before. The caller holds `store.exclusive()`.
    """
    now = time.time()
    uses = _Uses(store, on_look or _nobody)
    gone: list[StoreEntry] = []
    kept: list[StoreEntry] = []  # where they have to be sorted
    total = 0
    for entry in _contents(store, uses, on_look or _nobody):
        if not entry.steps or (older_than_days is not None and now - entry.used > older_than_days * DAY):
            gone.append(entry)
        elif max_bytes is not None:
            kept.append(entry)
            total += entry.size
    for entry in sorted(kept, key=lambda entry: entry.used):
        if max_bytes is None or total <= max_bytes:
            break
        gone.append(entry)
        total -= entry.size
    if not dry_run:
        for entry in gone:
            remove(entry.path)
            if on_entry:
                on_entry(entry)
        named = {entry.digest for entry in gone if entry.steps}
        if named or uses.damaged:
            for path, record in _records(store):
                names = _digests(record.get("outputs"))
                if not names or any(name in named for name in names):
                    path.unlink(missing_ok=True)
                    (store.root / "logs" / f"{path.stem}.log").unlink(missing_ok=True)
        for lock in (store.root / "locks").glob("*.lock"):
            if lock.name != "store.lock":
                lock.unlink(missing_ok=True)
    return sorted(gone, key=lambda entry: (-entry.size, entry.digest))
