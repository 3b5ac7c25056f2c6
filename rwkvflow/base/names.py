"""Names that came from elsewhere - a document, a store, a server, a release - and are to become paths.

There is one check for all of them, and every such name passes it before anything is made, read or linked by it.
"""

from __future__ import annotations

from pathlib import Path

LONGEST_PART = 255  # bytes in UTF-8; what file systems take
LONGEST_PATH = 1024
DEEPEST = 16


def part_problem(name: str) -> str | None:
    """Why a name cannot be one part of a path, in words; None where it can."""
    if not name:
        return "an empty name"
    if name in (".", ".."):
        return f"{name} names a folder, not something in it"
    if not name.isprintable():
        return "a name with a character that cannot be shown"
    if found := next((mark for mark in "/\\" if mark in name), None):
        return f"a name with {found} in it"
    if len(name.encode()) > LONGEST_PART:
        return f"a name of more than {LONGEST_PART} bytes"
    return None


def path_problem(path: str) -> str | None:
    """Why a text cannot be the relative path of something in a folder, in words; None where it can."""
    if path.startswith("/"):
        return "an absolute path"
    if len(path.encode("utf-8", "surrogatepass")) > LONGEST_PATH:
        return f"a path of more than {LONGEST_PATH} bytes"
    parts = path.split("/")
    if len(parts) > DEEPEST:
        return f"a path of more than {DEEPEST} parts"
    return next((problem for part in parts if (problem := part_problem(part))), None)


def checked_part(name: str) -> str:
    """The name. Raises ValueError where it cannot be one part of a path."""
    if problem := part_problem(name):
        raise ValueError(f"{problem}: {ascii(name)[:80]}")
    return name


def checked_path(path: str) -> str:
    """The relative path. Raises ValueError where it leads anywhere but below the folder that it is put in."""
    if problem := path_problem(path):
        raise ValueError(f"{problem}: {ascii(path)[:80]}")
    return path


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a file is, by its path or by a link on the way, anywhere but in a folder."""
    top = folder.resolve()
    return not path.resolve().is_relative_to(top)
