"""Digests inside the sandbox: equal to the host's hashing.py and plan/step.py, which may not be imported here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK = 4 << 20
SKIPPED = frozenset({"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"})


def file_digest(path: Path) -> str:
    """ "sha256:<hex>" of one file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def canonical(value: Any) -> bytes:
    """The one JSON encoding used for digests: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def json_digest(value: Any) -> str:
    """ "sha256:<hex>" of a value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def tree_digest(folder: Path) -> str:
    """Digest of a folder: relative names, contents and the owner's executable bit; caches and .git left out."""
    rows = sorted(
        [path.relative_to(folder).as_posix(), file_digest(path), bool(path.stat().st_mode & 0o100)]
        for path in folder.rglob("*")
        if path.is_file() and not SKIPPED.intersection(path.relative_to(folder).parts)
    )
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
