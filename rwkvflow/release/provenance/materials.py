"""What a release is made of, as the statement and the bill of materials both name it. Nothing of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.base.hashing import file_digest, walk
from rwkvflow.documents.names import part_of
from rwkvflow.documents.sources import COMMIT, SourceError, parse_source

# A folder's digest is no sha256 of a file, so that nobody takes it for one: see rwkvflow.base.hashing.manifest_digest.
TREE = "rwkvflowTree1"


@dataclass(frozen=True)
class Material:
    """One thing that went in. `kind`: model, lora, lora_init, state, tokenizer, text, engine, package, worker,
    base or wheel.
    """

    name: str  # unique, such as model/rwkv7-demo, wheel/numpy-2.4.1-cp311-….whl
    kind: str
    digest: Mapping[str, str]  # algorithm → hex
    uri: str | None = None
    size: int | None = None
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class UsedEngine:
    """An engine as an image built it: its build.json, and the sha256 of each of its files."""

    image: str
    facts: Mapping[str, Any]
    files: Mapping[str, str]
    patch: str | None  # path in the release of what was patched of what CMake wrote


def public_uri(source: str) -> str | None:
    """A source as others can use it; None for a file of this machine."""
    try:
        parsed = parse_source(source, folder=True)
    except SourceError:
        return None
    return None if parsed.remote is None else str(parsed)


def shown_source(source: str) -> str:
    """A source as a reader sees it: of an absolute path, which only this machine has, the file's name."""
    path = source.removeprefix("file:")
    return Path(path).name if path.startswith(("/", "~")) else source


def hub_repositories(params: Mapping[str, Any]) -> list[str]:
    """owner/name of each hub repository that a checkpoint or a LoRA came from, sorted."""
    found = set()
    for file in (*params["models"].values(), *params.get("loras", {}).values()):
        try:
            source = parse_source(file["source"], folder=True)
        except SourceError:
            continue
        if source.repository is not None:
            found.add(source.repository)
    return sorted(found)


def materials(params: Mapping[str, Any]) -> list[Material]:
    """Everything that the lock pins and this release used, sorted by name."""
    return sorted(_materials(params), key=lambda material: material.name)


def _materials(params: Mapping[str, Any]) -> Iterator[Material]:
    for kind in ("model", "tokenizer", "lora", "lora_init", "state", "text"):
        for name, file in params.get(f"{kind}s", {}).items():
            for part, pin in file.get("files", {"": file}).items():
                source = part_of(file["source"], part) if part else file["source"]
                uri, digest = public_uri(source), {"sha256": pin["sha256"]}
                yield Material(f"{kind}/{name}" + (f"/{part}" if part else ""), kind, digest, uri, pin["size"])
    yield _engine_source(params["engine"])
    for package in params.get("packages", {}).values():
        yield Material(f"package/{package['filename']}", "package", {"sha256": package["sha256"]})
    yield Material("worker", "worker", {TREE: _hex(params["worker"])})
    for name, item in params.get("formats", {}).items():
        yield Material(f"formats/{name}@{item['version']}", "formats", {TREE: _hex(item["digest"])})
    wheels: dict[tuple[str, str], list[str]] = {}
    for image, identity in params["images"].items():
        if base := identity.get("base"):
            algorithm, _, value = base.partition(":")
            yield Material(f"base/{image}", "base", {algorithm: value}, images=(image,))
        for filename, sha256 in identity.get("wheels", ()):
            wheels.setdefault((filename, sha256), []).append(image)
    for (filename, sha256), images in wheels.items():
        yield Material(f"wheel/{filename}", "wheel", {"sha256": sha256}, images=tuple(sorted(images)))


def _engine_source(engine: Mapping[str, Any]) -> Material:
    resolved = str(engine["source"])
    url, _, commit = resolved.rpartition("@")
    if url and COMMIT.fullmatch(commit):
        local = "://" not in url or url.startswith("file:")
        return Material("engine", "engine", {"gitCommit": commit}, None if local else f"git+{url}@{commit}")
    return Material("engine", "engine", {TREE: _hex(engine["digest"])} if engine["digest"] else {})


def engines(params: Mapping[str, Any], inputs: Mapping[str, Path], patches: Mapping[str, str]) -> list[UsedEngine]:
    """The engines that the artifacts were tested with. `patches` maps image → path of its patch in the release."""
    found = []
    for image in sorted(params["images"]):
        folder = inputs.get(f"engine/{image}")
        if folder is None or not (folder / "build.json").is_file():
            continue
        facts = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        files = {path.relative_to(folder).as_posix(): _hex(file_digest(path)) for path in walk(folder)}
        found.append(UsedEngine(image, facts, files, patches.get(image)))
    return found


def wheel_version(filename: str) -> tuple[str, str] | None:
    """(normalized name, version) of a wheel's file name; None where it is none."""
    match = re.fullmatch(r"([^-]+)-([^-]+)-.+\.whl", filename)
    return (re.sub(r"[-_.]+", "-", match[1]).lower(), match[2].replace("_", "+")) if match else None


def package_version(filename: str) -> tuple[str, str] | None:
    """(normalized name, version) of a source package's file name; None where it is none."""
    match = re.fullmatch(r"(.+)-([^-]+)\.tar\.gz", filename)
    return (re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]) if match else None


def _hex(digest: str) -> str:
    return digest.rpartition(":")[2]
