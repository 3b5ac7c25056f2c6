"""Files of a lock: checkpoints, Hugging Face models, adapters and tokenizers brought down to sha256 and size."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rwkvflow.base.errors import FetchError
from rwkvflow.base.events import Listener, StepProgress
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.lock import LockedFile, LockedPart
from rwkvflow.documents.names import part_of
from rwkvflow.documents.sources import Source, parse_source
from rwkvflow.engine.parts import FileSet
from rwkvflow.lock.header import refuse_source
from rwkvflow.lock.sets import files_of_set, listing_beside, set_begun
from rwkvflow.net.download import check_local, fetch_file, mismatch
from rwkvflow.net.http import Connection, Policy
from rwkvflow.net.remote import remote_of
from rwkvflow.store.store import Store
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.beside import TEMPLATE, TOKENIZER_CONFIG
from rwkvflow.worker.model.origin import TOKENIZERS
from rwkvflow.worker.read import hf_source

FILES = frozenset({".pth", ".pt", ".safetensors", ".st", ".bin", ".gguf"})  # suffixes of a checkpoint's own file
WORDS = (TOKENIZER_CONFIG, TEMPLATE)  # of a Hugging Face folder, which the GGUF of a hybrid has in it
MAX_INDEX = 32 << 20  # bytes of an index of shards
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass
class Files:
    """Looks files up. `folder` is what the recipe's paths are relative to."""

    folder: Path
    store: Store
    emit: Listener
    cancel: threading.Event
    policy: Policy

    def model(
        self, name: str, text: str, sha256: str | None, before: LockedFile | None, ignore: tuple[str, ...] = ()
    ) -> LockedFile:
        """A checkpoint: as `file`, or a Hugging Face model's folder, of which only what is needed is pinned.

        The first of several parts stands for all of them, which are pinned likewise. One that is no version of RWKV is
        refused by its header, before all of it is downloaded; `ignore` names tensors that are not to count.
        """
        source = parse_source(text, folder=True)
        path, begun = source.below(self.folder), set_begun(text, source.name)
        if path is not None:
            if path.is_dir():
                return self._local_folder(name, text, path, sha256, before)
            if begun is not None and (begun.index is None or path.with_name(begun.index).is_file()):
                return self._local_folder(name, text, path.parent, sha256, before, begun)
            return self.file(name, text, sha256, before)
        known = before is not None and before.source == text and sha256 in (None, before.sha256)
        if before is not None and known and (begun is None or before.files is not None):
            return before
        if begun is not None:
            return self._remote_set(name, text, sha256, begun)
        if source.folders and PurePosixPath(source.name).suffix not in FILES:
            return self._remote_folder(name, text, source, sha256)
        with Connection(self.policy, self.cancel) as connection:
            refuse_source(text, self.folder, ignore, connection)
        return self.file(name, text, sha256, before)

    def _local_folder(
        self,
        name: str,
        text: str,
        path: Path,
        sha256: str | None,
        before: LockedFile | None,
        begun: FileSet | None = None,
    ) -> LockedFile:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        known = (before.files or {}) if before is not None and before.source == text else {}
        parts = {}
        for part in _wanted(text, names, lambda index: _small(path / index), begun):
            if not _inside(path, path / part):
                raise FetchError(
                    f"{part_of(text, part)} is a link that leads out of its folder", remedy="copy the file"
                )
            own = part_of(text, part)
            pin = known.get(part)
            locked = LockedFile(source=own, resolved=own, sha256=pin.sha256, size=pin.size) if pin else None
            found = self._local(f"{name}/{part}", own, path / part, None, locked)
            parts[part] = LockedPart(sha256=found.sha256, size=found.size)
        return _folder(text, text, parts, sha256)

    def _remote_folder(self, name: str, text: str, source: Source, sha256: str | None) -> LockedFile:
        with Connection(self.policy, self.cancel) as connection:
            there = remote_of(source).listing(connection)
        if there is None:
            return self.file(name, text, sha256, None)
        at = there.at

        def pin(part: str) -> LockedFile:
            return self.file(f"{name}/{part}", part_of(at, part), None, None)

        def read(index: str) -> bytes:
            found = self.store.path(f"sha256:{self._bytes_of(pin(index)).sha256}")
            if found is None:
                raise FetchError(f"{part_of(at, index)} is gone from the store", remedy="try again")
            return _small(found)

        parts = {}
        for part in _wanted(text, [item for item in there.names if "/" not in item], read):
            locked = pin(part)
            parts[part] = LockedPart(sha256=locked.sha256, size=locked.size)
        return _folder(text, at, parts, sha256)

    def _remote_set(self, name: str, text: str, sha256: str | None, begun: FileSet) -> LockedFile:
        with Connection(self.policy, self.cancel) as connection:
            there = listing_beside(text, connection)
        at = text if there is None else part_of(there.at, begun.names[0])

        def pin(part: str) -> LockedFile:
            try:
                return self.file(f"{name}/{part}", part_of(at, part), None, None)
            except FetchError as error:
                raise FetchError(f"{text}: {begun.place_of(part)}: {error.message}", remedy=error.remedy) from error

        def read(index: str) -> bytes:
            found = self.store.path(f"sha256:{self._bytes_of(pin(index)).sha256}")
            if found is None:
                raise FetchError(f"{part_of(at, index)} is gone from the store", remedy="try again")
            return _small(found)

        names = None if there is None else [item for item in there.names if "/" not in item]
        pins = {part: pin(part) for part in _wanted(text, names, read, begun)}
        parts = {part: LockedPart(sha256=locked.sha256, size=locked.size) for part, locked in pins.items()}
        return _folder(text, at, parts, sha256)

    def _bytes_of(self, locked: LockedFile) -> LockedFile:
        """Make sure that a file's bytes are in the store; a file in LFS is pinned without them."""
        if self.store.path(f"sha256:{locked.sha256}") is None:
            self._download(locked.source, locked.resolved, locked.sha256, locked.size)
        return locked

    def file(self, name: str, text: str, sha256: str | None, before: LockedFile | None) -> LockedFile:
        """A checkpoint or tokenizer: where exactly, its sha256 and size."""
        source = parse_source(text)
        path = source.below(self.folder)
        if path is not None:
            return self._local(name, text, path, sha256, before)
        if before is not None and before.source == text and sha256 in (None, before.sha256):
            return before
        with Connection(self.policy, self.cancel) as connection:
            found = remote_of(source).look(connection, sha256)
        resolved = str(found.source)
        if found.sha256 is None or found.size is None:
            got, size = self._download(name, resolved, sha256, found.size)
        else:
            got, size = found.sha256, found.size
            if problem := mismatch(resolved, got, None, sha256, None):
                raise problem
        return LockedFile(source=text, resolved=resolved, sha256=got, size=size)

    def _local(self, name: str, text: str, path: Path, sha256: str | None, before: LockedFile | None) -> LockedFile:
        check_local(path, None)
        # Only while size and times are what they were.
        if (
            before is not None
            and before.source == text
            and sha256 in (None, before.sha256)
            and self.store.adopted(path, f"sha256:{before.sha256}")
            and path.stat().st_size == before.size
        ):
            return before
        got, size = fetch_file(
            text, path, sha256=sha256, recipe_folder=self.folder, on_bytes=self._meter(name, path), cancel=self.cancel
        )
        self.store.adopt(path.absolute(), f"sha256:{got}")
        return LockedFile(source=text, resolved=text, sha256=got, size=size)

    def _download(self, name: str, resolved: str, sha256: str | None, size: int | None) -> tuple[str, int]:
        """Only the bytes tell the sha256: they go into the store, and the run need not fetch them again."""
        target = self.store.root / "downloads" / f"lock-{text_digest(resolved).removeprefix('sha256:')}"
        got, length = fetch_file(
            resolved,
            target,
            sha256=sha256,
            size=size,
            recipe_folder=self.folder,
            on_bytes=self._meter(name, None, size),
            cancel=self.cancel,
            policy=self.policy,
        )
        self.store.put_file(target, f"sha256:{got}")
        return got, length

    def _meter(self, name: str, path: Path | None, size: int | None = None) -> Callable[[int], None]:
        total = path.stat().st_size if path is not None else size
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            self.emit(StepProgress(f"lock/{name}", done, total, "B", "hashing" if path else "downloading"))

        return on_bytes


def _wanted(
    text: str, names: Collection[str] | None, read: Callable[[str], bytes], begun: FileSet | None = None
) -> list[str]:
    """The files of a folder that a model is read from, sorted: config, index, weights, tokenizer; or those of a set."""
    if begun is not None:
        found = sorted(files_of_set(text, begun, names, read, (hf_source.CONFIG, *TOKENIZERS, *WORDS)))
        return _plain(text, found)
    names = names or ()
    try:
        first = hf_source.wanted(names)
        weights = hf_source.parts(first, read(first), names) if first.endswith(".json") else []
    except WorkerError as error:
        raise FetchError(f"{text}: {error}") from error
    beside = [name for name in (hf_source.CONFIG, *TOKENIZERS) if name in names]
    words = [name for name in WORDS if name in names]
    if words and hf_source.CONFIG in beside and hf_source.is_hybrid(read(hf_source.CONFIG)):
        beside += words  # which a GGUF of one has in it
    return _plain(text, sorted({first, *weights, *beside}))


def _plain(text: str, found: list[str]) -> list[str]:
    """The same names. Raises FetchError for one that is none of a model's file."""
    if odd := [name for name in found if not _PLAIN.fullmatch(name)]:
        raise FetchError(f"{text}: no file of a model is called {odd[0]!a}", remedy="rename it, also in the index")
    return found


def _folder(text: str, resolved: str, parts: dict[str, LockedPart], sha256: str | None) -> LockedFile:
    """The pin of a folder; its sha256 is that of the lines of sha256sum."""
    lines = "".join(f"{parts[name].sha256}  {name}\n" for name in sorted(parts))
    digest = text_digest(lines).removeprefix("sha256:")
    if problem := mismatch(text, digest, None, sha256, None):
        raise problem
    size = sum(part.size for part in parts.values())
    return LockedFile(source=text, resolved=resolved, sha256=digest, size=size, files=parts)


def _small(path: Path) -> bytes:
    if path.stat().st_size > MAX_INDEX:
        raise FetchError(f"{path.name} has {path.stat().st_size} bytes; no index has more than {MAX_INDEX}")
    return path.read_bytes()


def _inside(folder: Path, path: Path) -> bool:
    """Whether a file is in its folder, or, where that is a snapshot of the hub's cache, among the cache's own blobs."""
    real, top = path.resolve(), folder.resolve()
    return real.is_relative_to(top) or (
        top.parent.name == "snapshots" and real.is_relative_to(top.parent.parent / "blobs")
    )
