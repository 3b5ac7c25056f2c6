"""Where a build happens: a folder that the build may fill, write to and execute from, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rwkvflow.worker.errors import WorkerError


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[tuple[Path, list[str]]]:
    """A new folder parent/.build and all spellings of its path; removed afterwards.

    Its path has no characters that make, ninja and shells quote in different ways: where it would, a link leads there.
    Raises WorkerError where not even a link can be had under a plain name.
    """
    real = parent.resolve() / ".build"
    shutil.rmtree(real, ignore_errors=True)
    real.mkdir(parents=True)
    link_folder: Path | None = None
    root = real
    try:
        if not _plain(real):
            bases = [Path(tempfile.gettempdir()).resolve(), Path("/tmp")]  # noqa: S108 - mkdtemp makes its own in it
            base = next((base for base in bases if _plain(base)), None)
            if base is None:
                raise WorkerError(f"{real}: CMake projects cannot be built in a folder with this name")
            link_folder = Path(tempfile.mkdtemp(prefix="rwkvflow-", dir=base))
            root = link_folder / "engine"
            root.symlink_to(real, target_is_directory=True)
        yield root, list(dict.fromkeys((str(root), str(real))))
    finally:
        shutil.rmtree(real, ignore_errors=True)
        if link_folder is not None:
            shutil.rmtree(link_folder, ignore_errors=True)


def copy_tree(source: Path, target: Path) -> None:
    """Copy contents, links and executable bits, nothing else: inputs are read-only, and projects write beside them."""
    target.mkdir(parents=True)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        copy = target / entry.name
        if entry.is_symlink():
            copy.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            copy_tree(Path(entry.path), copy)
        elif entry.is_file():
            shutil.copyfile(entry.path, copy)
            copy.chmod(0o755 if entry.stat().st_mode & 0o100 else 0o644)


def cores() -> int:
    """Cores that this process may use: its affinity, and in a container the quota (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    return count


def _plain(path: Path) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_./+-]+", str(path)) is not None
