"""Checkpoints and engine sources on this machine: whether they still are what the lock pins.

A file that was trained on, or damaged, since the lock was made is noticed before anything runs. Hashing is spared while
size, time and inode are those of the last time.
"""

from __future__ import annotations

from pathlib import Path

from rwkvflow.base.events import Listener, Notice
from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import Lock, LockedFile, LockedPart, pinned_files
from rwkvflow.documents.recipe import Git, Recipe
from rwkvflow.documents.sources import parse_source
from rwkvflow.store.store import Store


def local_path(resolved: str, folder: Path) -> Path | None:
    """The file itself where a source is one of this machine's; such files are used in place."""
    return parse_source(resolved, folder=True).below(folder)


def changed_files(lock: Lock, folder: Path, store: Store, emit: Listener) -> list[str]:
    """What is no longer as locked, a sentence each. `folder` is what the recipe's paths are relative to."""
    found = []
    for place, resolved, pin in pinned_files(lock):
        path = local_path(resolved, folder)
        problem = path and _problem(path, pin, store, emit)
        if problem:
            found.append(f"{place}: {resolved} {problem}")
    return found


def changed_engine(recipe: Recipe, lock: Lock, folder: Path) -> list[str]:
    """Whether an engine whose sources are on this machine still is the locked one: a sentence, or nothing."""
    source = recipe.engine.source
    if lock.engine.digest is None or isinstance(source, Git):
        return []
    path = PACKAGE / "engine" if source == "builtin" else folder / Path(source.path).expanduser()
    if not path.is_dir():
        return [f"engine: {path} is no folder"]
    if tree_digest(path) == lock.engine.digest:
        return []
    what = "librwkv of this rwkvflow is not the one" if source == "builtin" else f"{source.path} is not what"
    return [f"engine: {what} that was locked"]


def _problem(path: Path, locked: LockedFile | LockedPart, store: Store, emit: Listener) -> str | None:
    wanted = f"sha256:{locked.sha256}"
    if store.adopted(path, wanted):
        return None
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != locked.size:
        return f"has {size:,} bytes, the lock says {locked.size:,}"
    if size > 1 << 28:
        emit(Notice(f"hashing {path.name}, which is new here or was touched"))
    digest = file_digest(path)
    if digest != wanted:
        return f"has sha256 {digest[7:19]}…, the lock says {locked.sha256[:12]}…"
    store.adopt(path, digest)
    return None
