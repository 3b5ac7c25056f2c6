"""Checkpoints that commands without a recipe name: files here, or of the hub and the web, kept in the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.base.events import Listener, Notice, StepProgress
from rwkvflow.base.files import clear_errors, read_json, remove, write_json
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.names import part_of
from rwkvflow.documents.sources import Source, SourceError, is_remote, parse_source
from rwkvflow.engine.parts import FileSet
from rwkvflow.lock.sets import set_begun
from rwkvflow.release.names import CATALOGUE, QUALITY

if TYPE_CHECKING:
    from rwkvflow.documents.lock import LockedFile, LockedPart
    from rwkvflow.release.choose import Runnable
    from rwkvflow.store.store import Store

FOLDER = "models"  # below the store: one folder a source, with source.json and the files
CHAT_FORMAT = "ggml-q8_0"  # what checkpoints are run as: nearly as good as F16, and half of it to read a token
CHECKPOINTS = (".pth", ".safetensors", ".gguf", ".bin", ".st")


@dataclass(frozen=True)
class KeptModel:
    """A model that is kept: what it was asked for by, its folder, bytes."""

    source: str
    folder: Path
    size: int


def fetched(
    text: str,
    root: Path,
    emit: Listener,
    cancel: threading.Event | None = None,
    endings: Sequence[str] = CHECKPOINTS,
) -> Path:
    """The file of a source that is on the hub or the web: from the store, else downloaded into it.

    Where it is the first part of a model, the others are fetched as well, and lie beside it.

    What is there for the same commit and hash is not fetched again, and will do where the hub cannot be asked. A
    download that was broken off goes on. Raises UsageError for a name that is no file, FetchError, StoreError.
    """
    try:
        source = parse_source(text, folder=True)
    except SourceError as error:
        raise UsageError(f"{text}: {error}") from error
    if (path := source.below(Path())) is not None:
        return path
    if source.folders and PurePosixPath(source.name).suffix not in endings:
        raise _which(source)
    folder = folder_of(text, root)
    if endings == CHECKPOINTS and (begun := set_begun(text, source.name)) is not None:
        return _fetch_set(text, folder, begun, root, emit, cancel)
    return _fetch(text, folder, folder / (source.name or "model"), root, emit, cancel)


def place_of(text: str, root: Path) -> Path:
    """Where `fetched` puts the file of a source elsewhere, or begins to. Raises UsageError for a name that is none."""
    try:
        source = parse_source(text, folder=True)
    except SourceError as error:
        raise UsageError(f"{text}: {error}") from error
    return folder_of(text, root) / (source.name or "model")


def folder_of(text: str, root: Path) -> Path:
    """Where what is made of a source is kept."""
    return root / FOLDER / text_digest(text).removeprefix("sha256:")[:16]


def _fetch(text: str, folder: Path, target: Path, root: Path, emit: Listener, cancel: threading.Event | None) -> Path:
    from rwkvflow.lock.files import Files
    from rwkvflow.net.http import Policy
    from rwkvflow.store.store import Store

    known = read_json(folder / "source.json") or {}
    there = target.is_file() and target.stat().st_size == known.get("size")
    if there and parse_source(text) == parse_source(str(known.get("resolved"))):
        return target  # a commit is named, and no longer changes
    stopped = cancel or threading.Event()
    files = Files(Path.cwd(), Store(root), emit, stopped, Policy(attempts=3) if there else Policy())
    try:
        found = files.file(target.name, text, None, None)
    except FetchError as error:
        if not there:
            raise
        emit(Notice(f"the copy of before is used, for the source cannot be asked: {error.message}", "warning"))
        return target
    if there and (known.get("sha256"), known.get("resolved")) == (found.sha256, found.resolved):
        return target
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        emit(StepProgress(f"fetch/{target.name}", done, found.size, "B", "downloading"))

    with clear_errors(f"fetching {target.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        _bring(files.store, found.resolved, target, found, on_bytes, cancel)
        facts = {"source": text, "resolved": found.resolved, "sha256": found.sha256, "size": found.size}
        write_json(folder / "source.json", facts)
    return target


def _fetch_set(
    text: str, folder: Path, begun: FileSet, root: Path, emit: Listener, cancel: threading.Event | None
) -> Path:
    """All parts, whose size is known before the first byte of them; what is there of the same hash stays."""
    from rwkvflow.lock.files import Files
    from rwkvflow.net.http import Policy
    from rwkvflow.store.store import Store

    first = folder / begun.names[0]
    known = read_json(folder / "source.json") or {}
    kept_parts = known.get("parts") or {}
    there = bool(kept_parts) and all(_has(folder / name, size) for name, (_, size) in kept_parts.items())
    if there and parse_source(text) == parse_source(str(known.get("resolved"))):
        return first  # a commit is named, and no longer changes
    files = Files(Path.cwd(), Store(root), emit, cancel or threading.Event(), Policy(attempts=3) if there else Policy())
    try:
        found = files.model(first.name, text, None, None)
    except FetchError as error:
        if not there:
            raise
        emit(Notice(f"the copy of before is used, for the source cannot be asked: {error.message}", "warning"))
        return first
    parts = found.files or {}
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        emit(StepProgress(f"fetch/{first.name}", done, found.size, "B", f"downloading {len(parts)} files"))

    with clear_errors(f"fetching {first.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, pin in sorted(parts.items()):
            if _has(folder / name, pin.size) and (kept_parts.get(name) or [""])[0] == pin.sha256:
                on_bytes(pin.size)
                continue
            _bring(files.store, part_of(found.resolved, name), folder / name, pin, on_bytes, cancel)
        facts = {"source": text, "resolved": found.resolved, "sha256": found.sha256, "size": found.size}
        write_json(
            folder / "source.json", {**facts, "parts": {name: [pin.sha256, pin.size] for name, pin in parts.items()}}
        )
    return first


def _bring(
    store: Store,
    resolved: str,
    target: Path,
    pin: LockedFile | LockedPart,
    on_bytes: Callable[[int], None],
    cancel: threading.Event | None,
) -> None:
    """Make a file of what the store has under its hash, else of what its source has."""
    from rwkvflow.net.download import fetch_file

    stored = store.path(f"sha256:{pin.sha256}")
    fetch_file(
        resolved if stored is None else str(stored),
        target,
        sha256=pin.sha256,
        size=pin.size,
        recipe_folder=Path.cwd(),
        on_bytes=on_bytes,
        cancel=cancel,
    )


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def playable(
    path: Path, root: Path, emit: Listener, library: Path, threads: int | None = None, form: str = CHAT_FORMAT
) -> Path:
    """The file that librwkv runs: `path` itself, or, of a checkpoint, what it was converted to, which is kept.

    A checkpoint that has changed since is converted again. Raises RwkvflowError for a file that is neither.
    """
    from rwkvflow.app.convert import Order, carry_out
    from rwkvflow.documents.formats import file_name
    from rwkvflow.worker.model.origin import Origin

    if not path.is_dir() and not _is_checkpoint(path):
        return path
    if path.is_dir() and (parts := sorted(path.glob("*-00001-of-?????.gguf"))) and len(parts) == 1:
        return parts[0]
    seen = path.stat()
    folder = folder_of(f"{path.resolve()} {seen.st_size} {seen.st_mtime_ns}", root)
    target = folder / file_name(path.stem, form)
    if not target.is_file():
        emit(Notice(f"{path.name} is a checkpoint: it is converted to {form}, and that is kept"))
        with clear_errors(f"converting {path.name}"):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "source.json", {"source": str(path.resolve())})
        order = Order(Origin(path), (path,), (form,), target, False, check=False, threads=threads)
        for _ in carry_out(replace(order, library=library), emit):
            pass
    return target


def _is_checkpoint(path: Path) -> bool:
    """By its first bytes: a ZIP or a pickle (torch), or the length and brace of safetensors."""
    with path.open("rb") as file:
        head = file.read(10)
    if head[:4] == b"GGUF":  # librwkv runs it as it is, whatever number stands behind
        return False
    return head[:4] == b"PK\3\4" or head[:1] == b"\x80" or head[8:9] == b"{"


def _which(source: Source) -> UsageError:
    """What to say of a repository or a folder where a file has to be named. Raises FetchError."""
    from rwkvflow.net.http import Connection, Policy
    from rwkvflow.net.remote import remote_of

    with Connection(Policy(attempts=3), None) as connection:
        there = remote_of(source).listing(connection)
    names = sorted(name for name in (there.names if there else ()) if name.endswith(CHECKPOINTS))
    if not names:
        return UsageError(f"{source} has no checkpoint", remedy="name a repository with .pth or .safetensors files")
    files = (part_of(str(source), name) for name in names)
    return UsageError(f"{source} is a repository, not a file", remedy="name one of its files: " + listed(files))


def listed(names: Iterator[str] | Sequence[str], most: int = 12) -> str:
    """Names one a line, the first of many."""
    found = list(names)
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "".join(f"\n    {name}" for name in [*found[:most], *more])


def kept(root: Path) -> list[KeptModel]:
    """The models that are kept, the largest first."""
    found = []
    for note in sorted((root / FOLDER).glob("*/source.json")):
        size = sum(path.stat().st_size for path in note.parent.rglob("*") if path.is_file())
        found.append(KeptModel(str((read_json(note) or {}).get("source", "?")), note.parent, size))
    return sorted(found, key=lambda item: -item.size)


def forget(root: Path) -> int:
    """Remove all of them, and what was begun; the bytes that are free again."""
    size = sum(path.stat().st_size for path in (root / FOLDER).rglob("*") if path.is_file())
    remove(root / FOLDER)
    return size


# ---- releases to choose from -------------------------------------------------------------------------------------


def release_files(text: str, emit: Listener) -> tuple[str, list[Runnable]]:
    """(Name of the release, its artifacts). `text`: a folder, its catalogue.json or quality.json, or a hub repository.

    Of a repository, the catalogue alone is fetched. Raises UsageError for what is none, FetchError where it has no
    catalogue or cannot be asked.
    """
    from rwkvflow.app.starts import source_meant
    from rwkvflow.store.store import default_root

    meant = source_meant(text)
    if not is_remote(meant):
        return _read(_file(Path(text)))
    place = meant if meant.endswith(".json") else f"{meant.rstrip('/')}/{CATALOGUE}"
    try:
        return _read(fetched(place, default_root(), emit, endings=(".json",)))
    except FetchError as error:
        error.remedy = error.remedy or f"releases of rwkvflow have a {CATALOGUE}, but for those of older versions"
        raise


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return path / CATALOGUE if (path / CATALOGUE).is_file() else path / QUALITY


def _read(path: Path) -> tuple[str, list[Runnable]]:
    from rwkvflow.release.catalogue import of_catalogue, read_catalogue
    from rwkvflow.release.choose import of_quality
    from rwkvflow.release.quality import read_quality

    try:
        data = path.read_bytes()
        if path.name == QUALITY:
            quality = read_quality(data)
            return quality.release, of_quality(quality)
        catalogue = read_catalogue(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", remedy="name a release folder") from None
    except (ValueError, RecursionError) as error:
        kind = QUALITY if path.name == QUALITY else CATALOGUE
        raise UsageError(f"{path} is no {kind} of a release: {error}") from None
    return catalogue.release, of_catalogue(catalogue)
