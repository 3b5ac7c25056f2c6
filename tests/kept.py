"""What tests keep between runs, below .rwkvflow/tests of the checkout: stores, wheels, base images, builds.

A run that begins makes room first, so that this does not grow with the number of runs. What is quickly made again goes
first: results in stores, then environments, then downloads, each the longest unused first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LIMIT = 2 << 30  # bytes
# Of a store, all but what stands in the two other lists.
RESULTS = ("blobs", "trees", "index", "external", "last", "runs", "logs", "shared", "tmp", "locks")


def use(root: Path, limit: int = LIMIT) -> IO[str]:
    """Sweep `root`, unless another run of the tests uses it; the run that keeps what is returned open uses it now."""
    root.mkdir(parents=True, exist_ok=True)
    file = (root / "in-use.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        sweep(root, limit)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def sweep(root: Path, limit: int = LIMIT) -> list[Path]:
    """Remove what is worth least until `root` holds at most `limit` bytes; returns what went."""
    gone: list[Path] = []
    if used(root) <= limit:
        return gone
    for path in _worth_least(root):
        if not _remove(path):
            continue
        gone.append(path)
        if used(root) <= limit:
            break
    return gone


def used(folder: Path) -> int:
    """Bytes on disk below a folder; files with several names in it count once, and what vanishes meanwhile not at all.

    What is mounted below it, as for a base image that is being made, is not in the folder.
    """
    seen = {}
    mounted = mounts()
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(f"{above}/{name}")
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
        folders[:] = [name for name in folders if os.path.realpath(f"{above}/{name}") not in mounted]
    return sum(seen.values())


def mounts() -> set[str]:
    """Where something is mounted; nothing where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {line.split()[4].replace("\\040", " ") for line in lines}


def _worth_least(root: Path) -> Iterator[Path]:
    stores = sorted((path.parent for path in root.glob("*/index")), key=_age)
    for store in stores:
        for name in RESULTS:
            if (store / name).exists():
                yield store / name
    yield from sorted(root.glob("*/environments/*/"), key=_age)
    yield from sorted(root.glob("encoders/*"), key=_age)
    yield from sorted((path for path in root.glob("llama-*") if path.is_dir()), key=_age)
    yield from sorted((path for path in root.glob("*/downloads/*") if path.name != "wheels"), key=_age)
    yield from sorted((*root.glob("*/downloads/wheels/*"), *root.glob("wheels/*"), *root.glob("bases/*")), key=_age)


def _age(path: Path) -> float:
    return path.lstat().st_mtime


def _remove(path: Path) -> bool:
    """Not where something is mounted below it: that is being worked in, and it may be the machine's own /dev."""
    inside = f"{os.path.realpath(path)}/"
    if any(f"{mounted}/".startswith(inside) for mounted in mounts()):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return True
