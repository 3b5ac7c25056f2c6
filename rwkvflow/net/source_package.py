"""Source packages of the package index: downloaded by pip, unpacked here, never run on this machine.

pip wants to know a source package's metadata before it hands it over, and would run the package's build backend for
it. It finds a stand-in instead, which reads what the package states about itself (PKG-INFO).
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from rwkvflow.base.errors import FetchError
from rwkvflow.base.files import clear_errors
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.lock import LockedPackage
from rwkvflow.net.pip import Target, run_pip

LARGEST = 1 << 30  # bytes that may be unpacked
STAND_IN = '''\
"""Stands in for the build backend of a package that is only downloaded."""
import pathlib


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    lines = [line for line in text.split("\\n\\n")[0].splitlines() if line.startswith(("Name:", "Version:"))]
    facts = dict(line.split(": ", 1) for line in lines)
    folder = pathlib.Path(metadata_directory, "{Name}-{Version}.dist-info".format(**facts))
    folder.mkdir()
    (folder / "METADATA").write_text("\\n".join(["Metadata-Version: 2.1", *lines]) + "\\n", encoding="utf-8")
    return folder.name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise SystemExit("this package is not to be built")
'''


def fetch_package(
    locked: LockedPackage,
    destination: Path,
    *,
    root: str,
    kept: Sequence[str],
    scratch: Path,
    platform: str,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Unpack what `kept` (paths and globs below `root`) names of a source package into `destination`, which it makes.

    Raises FetchError where the index does not have the package or has another, StoreError for a full disk.
    """
    with clear_errors(f"fetching {locked.filename}"):
        archive = _download(locked, scratch, platform, on_line, cancel)
        unpack(archive, destination, root=root, kept=kept)
        archive.unlink()


def _download(
    locked: LockedPackage,
    scratch: Path,
    platform: str,
    on_line: Callable[[str], None] | None,
    cancel: threading.Event | None,
) -> Path:
    backend = scratch / "backend" / locked.backend.replace(".", "/")
    backend.parent.mkdir(parents=True)
    (backend.parent / "__init__.py").touch()
    backend.with_suffix(".py").write_text(STAND_IN, encoding="utf-8")
    listed, arrived = scratch / "requirements.txt", scratch / "arrived"
    listed.write_text(f"{locked.name}=={locked.version} --hash=sha256:{locked.sha256}\n", encoding="utf-8")
    arguments = ["download", "--no-deps", "--require-hashes", "--no-build-isolation", f"--no-binary={locked.name}"]
    ran = run_pip(
        Target(f"{sys.version_info[0]}.{sys.version_info[1]}", platform),
        [*arguments, "-r", str(listed), "-d", str(arrived)],
        scratch=scratch,
        on_line=on_line,
        cancel=cancel,
        environment={"PYTHONPATH": str(scratch / "backend")},
    )
    path = arrived / locked.filename
    if ran.ok and path.is_file() and file_digest(path) == f"sha256:{locked.sha256}":
        return path
    if any("DO NOT MATCH THE HASHES" in line for line in ran.lines):
        raise FetchError(
            f"{locked.filename} of the package index is not the one in the lock",
            remedy="it was replaced or tampered with on the way; `rwkvflow lock` if you trust the new one",
        )
    raise FetchError(
        f"pip brought no {locked.filename}: {ran.errors}",
        remedy="check the network and pip's configuration (`pip config list`); the index must have source packages",
    )


def unpack(archive: Path, destination: Path, *, root: str, kept: Sequence[str]) -> None:
    """The regular files of a .tar.gz that are wanted; the archive's one top folder and `root` are stripped.

    Raises FetchError for an archive that is damaged, absurdly large, or has none of them.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                name = _wanted(member.name, root, kept)
                if name is None or not member.isfile():
                    continue
                total += member.size
                if total > LARGEST:
                    raise FetchError(f"{archive.name} holds more than {LARGEST >> 30} GiB")
                source = opened.extractfile(member)
                target = destination / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source is not None:
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked: {error}") from error
    if not total:
        raise FetchError(f"{archive.name} has none of the files that are looked for in it below {root}")


def _wanted(name: str, root: str, kept: Sequence[str]) -> str | None:
    """Path below root of a member's name; None for what is not kept or leads anywhere else."""
    parts = PurePosixPath(name).parts
    below = PurePosixPath(root).parts
    if name.startswith("/") or ".." in parts or "\\" in name or parts[1 : 1 + len(below)] != below:
        return None
    rest = "/".join(parts[1 + len(below) :])
    for pattern in kept:
        same_depth = rest.count("/") == pattern.count("/")
        if rest == pattern or rest.startswith(f"{pattern}/") or (same_depth and fnmatchcase(rest, pattern)):
            return rest
    return None
