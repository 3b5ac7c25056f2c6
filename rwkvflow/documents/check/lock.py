"""What a lock must fulfil beyond types: a stranger may have written it, and each of its words is used somewhere.

`resolved` belongs to its `source`: a lock pins what the recipe names, and cannot put another file in its place.
"""

from __future__ import annotations

import re
from typing import Any

from rwkvflow.documents.parts import COMMIT, IMAGE_REFERENCE, PYTHON
from rwkvflow.documents.sources import SourceError, control_character, git_url, parse_source
from rwkvflow.documents.yaml.nearest import shown
from rwkvflow.documents.yaml.source import DocumentSource

PLATFORM = r"(linux|macos)-[a-z0-9_]{1,20}"
_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_FILES = ("models.*", "tokenizers.*", "loras.*", "lora_inits.*", "states.*", "texts.*")
_SHAPES = (
    ("images.*.python", PYTHON, "a Python version such as 3.11"),
    ("images.*.base.reference", IMAGE_REFERENCE, "an image reference such as debian:bookworm"),
    ("images.*.base.digest", r"sha256:[0-9a-f]{64}", "a digest: sha256: and 64 digits"),
    ("packages.*.backend", _MODULE, "the name of a module"),
    ("packages.*.sha256", r"[0-9a-f]{64}", "a sha256 of 64 digits"),
)


def check_lock(source: DocumentSource) -> None:
    """Add findings to `source`."""
    for pattern in _FILES:
        for path, entry in source.each(pattern):
            if isinstance(entry, dict) and (problem := _resolved_problem(entry)):
                source.add((*path, "resolved"), problem)
    for pattern, shape, words in _SHAPES:
        for path, text in source.texts(pattern):
            if len(text) > 255 or not re.fullmatch(shape.removeprefix("^").removesuffix("$"), text):
                source.add(path, f"expected {words}, found {shown(text)}")
    for path, _ in source.each("images.*.platforms.*"):
        if not re.fullmatch(PLATFORM, str(path[-1])):
            source.add(path, f"expected a platform such as linux-x86_64, found {shown(str(path[-1]))}", at_key=True)
    for path, entry in source.each("engine"):
        if isinstance(entry, dict) and (problem := _engine_problem(entry)):
            source.add((*path, "resolved"), problem)


def _resolved_problem(entry: dict[str, Any]) -> str | None:
    named, resolved = entry.get("source"), entry.get("resolved")
    if not isinstance(named, str) or not isinstance(resolved, str):
        return None  # said already
    try:
        wanted, found = parse_source(named, folder=True), parse_source(resolved, folder=True)
    except SourceError as error:
        return str(error)
    return None if wanted.pinned_by(found) else f"{shown(resolved)} is not what the source {shown(named)} stands for"


def _engine_problem(entry: dict[str, Any]) -> str | None:
    kind, resolved = entry.get("kind"), entry.get("resolved")
    if not isinstance(resolved, str):
        return None
    if control_character(resolved):
        return "a control character cannot stand in a source"
    if kind == "builtin" and resolved != "builtin":
        return f"expected builtin, found {shown(resolved)}"
    if kind == "git":
        url, _, commit = resolved.rpartition("@")
        if not re.fullmatch(COMMIT, commit):
            return f"expected a git URL, @ and a full commit hash, found {shown(resolved)}"
        try:
            git_url(url)
        except SourceError as error:
            return str(error)
    return None
