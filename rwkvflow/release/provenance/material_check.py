"""Whether what a statement says went into a release is what its lock pins: nothing missing, named twice, or besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rwkvflow.base.names import path_problem
from rwkvflow.documents.lock import files_beside
from rwkvflow.release.names import LOCK
from rwkvflow.release.provenance.statement import dependencies

if TYPE_CHECKING:
    from rwkvflow.documents.lock import Lock

_PINNED = ("model", "tokenizer", "lora", "lora_init", "state", "text", "package", "wheel")


def material_problems(statement: Mapping[str, Any], lock: Lock | None) -> list[str]:
    """In words. Without a lock, only what can be seen without one."""
    found = [*_names(statement)]
    if lock is not None and not found:
        found += _against(statement, lock)
    return found


def _names(statement: Mapping[str, Any]) -> Iterator[str]:
    listed = statement["predicate"]["buildDefinition"].get("resolvedDependencies", [])
    names = Counter(str(item.get("name", "")) for item in listed)
    for name, count in sorted(names.items()):
        if count > 1:
            yield f"it names {name} {count} times among what went in"
        if problem := path_problem(name):
            yield f"something that went in has {problem}: {name[:80]}"
    for name in (LOCK, "worker", "engine"):
        if name not in names:
            yield f"{name} is missing among what went in"


def _against(statement: Mapping[str, Any], lock: Lock) -> Iterator[str]:
    stated = {name: digest.get("sha256") for name, digest in dependencies(statement).items()}
    models, images = _used(statement)
    pinned, needed = _files(lock, models)
    for image in sorted(images):
        locked = lock.images.get(image)
        platforms = locked.platforms.values() if locked else ()
        wheels = [{f"wheel/{wheel.filename}": wheel.sha256 for wheel in item.worker} for item in platforms]
        if not any(stated.items() >= one.items() for one in wheels):
            yield f"wheels that {LOCK} pins for {image} are missing among what went in"
    for one in lock.images.values():
        for item in one.platforms.values():
            pinned |= {f"wheel/{wheel.filename}": wheel.sha256 for wheel in item.worker}
    for name in sorted(needed - stated.keys()):
        yield f"{name}, which {LOCK} pins, is missing among what went in"
    for name, sha256 in sorted(stated.items()):
        if name.partition("/")[0] not in _PINNED or "/" not in name:
            continue
        if name not in pinned:
            yield f"{name} went in, and {LOCK} does not pin it"
        elif pinned[name] != sha256:
            yield f"{name} is not what {LOCK} pins"


def _files(lock: Lock, models: set[str]) -> tuple[dict[str, str], set[str]]:
    """(name → sha256 of the files and packages that the lock pins, the names that releases of these models need)."""
    pinned: dict[str, str] = {}
    needed: set[str] = set()
    for kind, entries in {"model": lock.models, **files_beside(lock)}.items():
        for model, file in entries.items():
            parts = {part: pin.sha256 for part, pin in file.files.items()} if file.files else {"": file.sha256}
            files = {f"{kind}/{model}" + (f"/{part}" if part else ""): sha256 for part, sha256 in parts.items()}
            pinned |= files
            needed |= files.keys() if model in models else set()
    pinned |= {f"package/{package.filename}": package.sha256 for package in (lock.packages or {}).values()}
    return pinned, needed


def _used(statement: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The models and the images that the statement says its artifacts were made of and in."""
    models: set[str] = set()
    images: set[str] = set()
    for subject in statement["subject"]:
        notes = subject.get("annotations")
        if isinstance(notes, dict) and isinstance(notes.get("model"), str):
            models.add(notes["model"])
            made_in = notes.get("images")
            images |= {str(image) for image in made_in} if isinstance(made_in, list) else set()
    return models, images
