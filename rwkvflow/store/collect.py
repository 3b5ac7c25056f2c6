"""Looking after the store: what is in it, whether it is intact, and what can go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base.files import clear_errors, read_json, remove
from rwkvflow.base.hashing import file_digest, tree_digest, walk
from rwkvflow.store.store import Store

DAY = 86400.0


@dataclass(frozen=True)
class StoreEntry:
    """One blob or tree of the store."""

    digest: str
    kind: str
    size: int
    path: Path
    steps: tuple[str, ...]  # ids of the steps that made it; empty: nothing refers to it
    used: float  # time of last use, seconds since the epoch


@dataclass(frozen=True)
class Damage:
    """A blob whose bytes are not what its name says."""

    digest: str
    path: Path
    message: str


def _records(store: Store) -> Iterator[tuple[Path, dict[str, object]]]:
    for path in sorted((store.root / "index").glob("*/*.json")):
        yield path, read_json(path) or {}


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


def entries(store: Store) -> list[StoreEntry]:
    """Everything in blobs/ and trees/, largest first."""
    steps: dict[str, set[str]] = {}
    used: dict[str, float] = {}
    for path, record in _records(store):
        outputs = record.get("outputs")
        for digest in _digests(outputs):
            steps.setdefault(digest, set()).add(str(record.get("step")))
            used[digest] = max(used.get(digest, 0.0), path.stat().st_mtime)
    found = []
    for kind, folder in (("file", "blobs"), ("tree", "trees")):
        for path in sorted((store.root / folder).glob("*/*")):
            digest = f"sha256:{path.name}"
            size = path.stat().st_size if kind == "file" else sum(item.stat().st_size for item in walk(path))
            last = used.get(digest, path.stat().st_mtime)
            found.append(StoreEntry(digest, kind, size, path, tuple(sorted(steps.get(digest, ()))), last))
    return sorted(found, key=lambda entry: (-entry.size, entry.digest))


def verify(store: Store, on_entry: Callable[[StoreEntry], None] | None = None) -> list[Damage]:
    """Hash everything; remove what is damaged, so that the next run makes it again."""
    damaged = []
    for entry in entries(store):
        if on_entry:
            on_entry(entry)
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
) -> list[StoreEntry]:
    """Remove what nothing refers to, what was not used for so many days, then the oldest until it fits.

    Returns what was removed (or would be); `on_entry` is told each when it is. The caller holds `store.exclusive()`.
    """
    now = time.time()
    everything = entries(store)
    gone = {
        entry.digest: entry
        for entry in everything
        if not entry.steps or (older_than_days is not None and now - entry.used > older_than_days * DAY)
    }
    kept = sorted((entry for entry in everything if entry.digest not in gone), key=lambda entry: entry.used)
    total = sum(entry.size for entry in kept)
    for entry in kept:
        if max_bytes is None or total <= max_bytes:
            break
        gone[entry.digest] = entry
        total -= entry.size
    if not dry_run:
        for entry in gone.values():
            remove(entry.path)
            if on_entry:
                on_entry(entry)
        for path, record in _records(store):
            outputs = record.get("outputs")
            names = _digests(outputs)
            if not names or any(name in gone for name in names):
                path.unlink(missing_ok=True)
                (store.root / "logs" / f"{path.stem}.log").unlink(missing_ok=True)
        for lock in (store.root / "locks").glob("*.lock"):
            if lock.name != "store.lock":
                lock.unlink(missing_ok=True)
    return sorted(gone.values(), key=lambda entry: (-entry.size, entry.digest))
