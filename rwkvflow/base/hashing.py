"""Digests of files and folders. A digest is "sha256:<hex>" everywhere in rwkvflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

CHUNK = 4 << 20


def file_digest(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Digest of one file's bytes; `on_bytes` is told the size of each chunk read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if on_bytes:
                on_bytes(count)
    return "sha256:" + digest.hexdigest()


def text_digest(text: str | bytes) -> str:
    """Digest of a text (UTF-8) or of bytes."""
    data = text.encode() if isinstance(text, str) else text
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest_digest(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Digest of a folder given as (relative POSIX path, file digest, executable); the order does not matter."""
    rows = sorted([path, digest, executable] for path, digest, executable in entries)
    return text_digest(json.dumps(rows, separators=(",", ":"), ensure_ascii=False))


SKIPPED = frozenset({"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"})


def walk(folder: Path) -> list[Path]:
    """All files below a folder in sorted POSIX order, caches left out."""
    return sorted(
        (
            path
            for path in folder.rglob("*")
            if path.is_file() and not SKIPPED.intersection(path.relative_to(folder).parts)
        ),
        key=lambda path: path.relative_to(folder).as_posix(),
    )


def tree_digest(folder: Path) -> str:
    """Digest of a folder: names, contents and the executable bit; nothing of times, owners or location."""
    return manifest_digest(
        (path.relative_to(folder).as_posix(), file_digest(path), bool(path.stat().st_mode & 0o100))
        for path in walk(folder)
    )
