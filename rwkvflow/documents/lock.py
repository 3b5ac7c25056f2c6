"""The lock: every input of a recipe, pinned. No URLs of package registries, no tokens, no paths of this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from rwkvflow.documents.combine import formats_of
from rwkvflow.documents.formats import consumers, engines, outside
from rwkvflow.documents.names import FORMER, Part, may_be_given, part_of
from rwkvflow.documents.parts import Many, Sha256, Strict
from rwkvflow.documents.recipe import Git, Image, InitialState, LocalFolder, Lora, Model, Recipe

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(ge=0)]


class LockedPart(Strict):
    """A file of a folder."""

    sha256: Sha256
    size: Bytes


class LockedFile(Strict):
    """A file that a recipe fetches, or the files of a folder that make a model."""

    source: str = Field(description="As in the recipe")
    resolved: str = Field(
        description="The same with a hub branch replaced by a commit; local paths stay relative to the recipe"
    )
    sha256: Sha256 = Field(description="Of a folder: of what `sha256sum` prints for its files, sorted by name")
    size: Bytes
    files: dict[Part, LockedPart] | None = Field(default=None, description="Of a folder: those that are used, by name")


class LockedWheel(Strict):
    """One wheel, exactly."""

    name: Part = Field(description="Normalized")
    version: Part = Field(description="With its local part, e.g. 2.13.0+cpu")
    filename: Part
    sha256: Sha256
    size: Bytes | None = None


class LockedBase(Strict):
    """A base image: the reference in the recipe and what it stood for."""

    reference: str
    digest: str = Field(
        description="sha256:…; the registry's manifest digest, or the image's root file system for local ones"
    )
    kind: Literal["registry", "local"]


class LockedWheels(Strict):
    """The wheels of one platform by role, sorted by name. Stages of the Dockerfile get exactly one role each."""

    worker: Many[LockedWheel] = Field(description="numpy, safetensors, torch, extra wheels, tokenizers")
    toolchain: Many[LockedWheel] = Field(
        default=(), description="ziglang, cmake, ninja; empty for the system toolchain"
    )
    installer: Many[LockedWheel] = Field(default=(), description="pip itself, in locks of before; not used")

    @field_validator("worker", "toolchain", "installer")
    @classmethod
    def _sorted(cls, wheels: tuple[LockedWheel, ...]) -> tuple[LockedWheel, ...]:
        return tuple(sorted(wheels, key=lambda wheel: (wheel.name, wheel.version, wheel.filename, wheel.sha256)))


class LockedImage(Strict):
    """The environment of one image."""

    python: str
    base: LockedBase | None = Field(default=None, description="Absent until a Docker run needs it")
    platforms: dict[Part, LockedWheels] = Field(description="By platform, e.g. linux-x86_64")


class LockedEngine(Strict):
    """The engine's sources."""

    kind: Literal["builtin", "git", "folder"]
    resolved: str = Field(description="builtin, <url>@<commit>, or the relative path")
    digest: Digest | None = Field(
        default=None, description="Tree digest where the sources are local (builtin, folder); a commit pins git"
    )


class LockedPackage(Strict):
    """A source package of the package index."""

    name: Part
    version: Part
    filename: Part
    sha256: Sha256
    backend: str = Field(description="Its build backend, which is never run")


class LockedFormats(Strict):
    """An installed package that adds formats."""

    version: str
    names: Many[str] = Field(description="The formats of it that the recipe makes")


class Lock(Strict):
    """recipe.lock.yaml as a whole."""

    version: Literal[1] = 1
    recipe: str = Field(description="sha256 over the parts of the recipe that the lock depends on")
    models: dict[Part, LockedFile]
    tokenizers: dict[Part, LockedFile] = Field(
        default_factory=dict, description="By model: tokenizer files that the recipe names by a source"
    )
    loras: dict[Part, LockedFile] | None = Field(default=None, description="By model: what is merged into it")
    lora_inits: dict[Part, LockedFile] | None = Field(default=None, description="By model: what its PiSSA began with")
    states: dict[Part, LockedFile] | None = Field(default=None, description="By model: its initial states")
    texts: dict[Part, LockedFile] | None = Field(
        default=None, description="By model: what its importance matrix is computed over, where the recipe has a file"
    )
    images: dict[Part, LockedImage]
    engine: LockedEngine
    packages: dict[Part, LockedPackage] | None = Field(
        default=None,
        description="Sources of what formats are tested with, such as llama.cpp; absent if none is needed",
    )
    formats: dict[Part, LockedFormats] | None = Field(
        default=None, description="By name: installed packages that add formats of the recipe; absent where none does"
    )


LLAMA = "llama.cpp"
SHIPPED_CALIBRATION = "calibration"  # the text of that name ships, and is a file of nobody's
BUILTIN_TOKENIZERS = frozenset({"auto", "bytes", "world"})


def lock_path(recipe: Path) -> Path:
    """recipe.yaml → recipe.lock.yaml."""
    return recipe.with_name(f"{recipe.stem}.lock.yaml")


def locked_parts(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that its lock depends on; the order of models, images and wheels is none of them."""
    source = recipe.engine.source
    wanted, added = consumers_of(recipe), added_by(recipe) or {}
    return {
        "version": recipe.version,
        "models": {
            model.name: {
                "source": model.source,
                "sha256": model.sha256,
                "tokenizer": _tokenizer(model),
                **{kind: [item.source, item.sha256] for kind, item in adapters_of(model).items()},
                **({"text": text} if (text := calibration_file(model)) else {}),
            }
            for model in recipe.models
        },
        "images": {
            image.name: {
                "base": image.base or FORMER,  # locks from before there was a choice go on fitting
                "python": image.python,
                "torch": image.torch,
                "wheels": sorted(image.wheels),
                **({"consumers": list(wanted[image.name])} if wanted[image.name] else {}),
            }
            for image in recipe.images
        },
        "engine": {
            "source": source if isinstance(source, str) else source.model_dump(mode="json", exclude={"folder"}),
            "toolchain": recipe.engine.toolchain,
        },
        **({"packages": list(packages)} if (packages := packages_of(recipe)) else {}),
        **({"formats": {name: list(item.names) for name, item in added.items()}} if added else {}),
    }


def adapters_of(model: Model) -> dict[str, Lora | InitialState]:
    """What a recipe names beside a model's checkpoint: "lora", "lora_init" and "state", where it does."""
    began = InitialState(source=model.lora.init) if model.lora is not None and model.lora.init else None
    named: dict[str, Lora | InitialState | None] = {"lora": model.lora, "lora_init": began, "state": model.state}
    return {kind: item for kind, item in named.items() if item is not None}


def calibration_file(model: Model) -> str | None:
    """The file that a model's importance matrix is computed over; None where there is none, or the text ships."""
    named = model.imatrix.text if model.imatrix else SHIPPED_CALIBRATION
    return None if named == SHIPPED_CALIBRATION else named


def files_beside(lock: Lock) -> dict[str, Mapping[str, LockedFile]]:
    """What a lock pins of models beside their checkpoints, by kind and model."""
    named = {
        "tokenizer": lock.tokenizers,
        "lora": lock.loras,
        "lora_init": lock.lora_inits,
        "state": lock.states,
        "text": lock.texts,
    }
    return {kind: entries or {} for kind, entries in named.items()}


def pinned_files(lock: Lock) -> Iterator[tuple[str, str, LockedFile | LockedPart]]:
    """(place in the lock, source of the file, its pin) of every file that is fetched, those of folders one by one."""
    for kind, entries in {"model": lock.models, **files_beside(lock)}.items():
        for name, locked in sorted(entries.items()):
            if locked.files is None:
                yield f"{kind}s.{name}", locked.resolved, locked
            for part, pin in sorted((locked.files or {}).items()):
                yield f"{kind}s.{name}", part_of(locked.resolved, part), pin


def packages_of(recipe: Recipe) -> tuple[str, ...]:
    """What is built besides the engine to test the recipe's formats with, sorted: "llama.cpp" or nothing."""
    return engines(name for names in formats_of(recipe).values() for name in names)


def added_by(recipe: Recipe) -> dict[str, LockedFormats] | None:
    """The installed packages that add formats of the recipe, by name; None where all formats are our own."""
    names = sorted({name for names in formats_of(recipe).values() for name in names})
    return {
        package: LockedFormats(version=item.version, names=tuple(name for name in names if package in outside([name])))
        for package, item in outside(names).items()
    } or None


def consumers_of(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """What the formats that are made in each image need in it to be tested, by the image's name."""
    return {image: consumers(names) for image, names in formats_of(recipe).items()}


def recipe_digest(recipe: Recipe) -> str:
    """Hex sha256 over the canonical JSON of `locked_parts`.

    Smoke and publish do not change it, nor do formats whose consumers need nothing in the image.
    """
    text = json.dumps(locked_parts(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def disagreements(recipe: Recipe, lock: Lock) -> list[str]:
    """Each way in which a lock does not fit its recipe, in words; empty where it fits."""
    found = [
        *_names("models", {model.name for model in recipe.models}, set(lock.models)),
        *_models(recipe, lock),
        *_names("images", {image.name for image in recipe.images}, set(lock.images)),
    ]
    wanted = consumers_of(recipe)
    for image in recipe.images:
        if locked := lock.images.get(image.name):
            found += _image(image, locked, recipe.engine.toolchain, wanted[image.name])
    found += _engine(recipe, lock.engine)
    found += _names("packages", set(packages_of(recipe)), set(lock.packages or {}))
    here = added_by(recipe) or {}
    found += _names("formats", set(here), set(lock.formats or {}))
    for name, item in sorted((lock.formats or {}).items()):
        if name in here and here[name].version != item.version:
            found.append(f"formats.{name}: version was {item.version} in the lock, {here[name].version} is installed")
    if not found and lock.recipe != recipe_digest(recipe):
        found.append(
            "the recipe changed in a part that the lock depends on: a model's source or tokenizer, an image, what "
            "formats need in it, or the engine's source or toolchain"
        )
    return found


def _names(what: str, wanted: set[str], locked: set[str]) -> Iterator[str]:
    for name in sorted(wanted - locked):
        yield f"{what}.{name}: is in the recipe, not in the lock"
    for name in sorted(locked - wanted):
        yield f"{what}.{name}: is in the lock, no longer in the recipe"


def _was(place: str, what: str, before: object, now: object) -> str:
    return f"{place}: {what} was {before} in the lock, is {now} in the recipe"


def _tokenizer(model: Model) -> str | None:
    return None if model.tokenizer in BUILTIN_TOKENIZERS else model.tokenizer


def _models(recipe: Recipe, lock: Lock) -> Iterator[str]:
    for model in recipe.models:
        locked = lock.models.get(model.name)
        if locked is not None and locked.source != model.source:
            yield _was(f"models.{model.name}", "source", locked.source, model.source)
        elif locked is not None and model.sha256 not in (None, locked.sha256):
            yield _was(f"models.{model.name}", "sha256", locked.sha256, model.sha256)
    beside = files_beside(lock)
    for kind, entries in ((kind, beside[kind]) for kind in ("lora", "lora_init", "state")):
        named = {model.name: item for model in recipe.models if (item := adapters_of(model).get(kind))}
        yield from _names(f"{kind}s", set(named), set(entries))
        for name, item in sorted(named.items()):
            if (file := entries.get(name)) and file.source != item.source:
                yield _was(f"{kind}s.{name}", "source", file.source, item.source)
            elif file and item.sha256 not in (None, file.sha256):
                yield _was(f"{kind}s.{name}", "sha256", file.sha256, item.sha256)
    for kind, of, entries in (
        ("tokenizers", _tokenizer, lock.tokenizers),
        ("texts", calibration_file, lock.texts or {}),
    ):
        wanted = {model.name: source for model in recipe.models if (source := of(model))}
        yield from _names(kind, set(wanted), set(entries))
        for name, source in sorted(wanted.items()):
            if (file := entries.get(name)) and file.source != source:
                yield _was(f"{kind}.{name}", "source", file.source, source)


def _image(image: Image, locked: LockedImage, toolchain: str, wanted: tuple[str, ...]) -> Iterator[str]:
    place = f"images.{image.name}"
    if locked.python != image.python:
        yield _was(place, "python", locked.python, image.python)
    if locked.base is not None and not fits_base(image, locked.base):
        yield _was(place, "base", locked.base.reference, image.base or "unsaid")
    for platform, wheels in sorted(locked.platforms.items()):
        versions = {_normal(wheel.name): wheel.version for wheel in wheels.worker}
        torch = versions.get("torch")
        if (torch is None) != (image.torch is None) or (torch and image.torch and not _same(torch, image.torch)):
            yield _was(f"{place} ({platform})", "torch", torch or "absent", image.torch or "absent")
        for requirement in image.wheels:
            if _package(requirement) not in versions:
                yield f"{place} ({platform}): the wheel {requirement} is in the recipe, not in the lock"
        for requirement in wanted:
            if _package(requirement) not in versions:
                yield f"{place} ({platform}): {requirement}, which a format of the recipe needs, is not in the lock"
        if bool(wheels.toolchain) != (toolchain == "zig"):
            yield _was(f"{place} ({platform})", "toolchain", "zig" if wheels.toolchain else "system", toolchain)


def fits_base(image: Image, base: LockedBase) -> bool:
    """Whether a base is the one that a recipe's image names, or may be given to one that names none."""
    return may_be_given(base.reference, image.python) if image.base is None else base.reference == image.base


def bases_of(recipe: Recipe, lock: Lock | None) -> list[tuple[str | None, str]]:
    """(base, Python) of each image; without a base where the recipe names none and the lock pins none."""
    found = []
    for image in recipe.images:
        locked = lock.images.get(image.name) if lock else None
        known = locked.base if locked and locked.base and fits_base(image, locked.base) else None
        found.append((image.base or (known.reference if known else None), image.python))
    return found


def _package(requirement: str) -> str:
    """The normalized name of what is required."""
    match = re.match(r"[A-Za-z0-9._-]*", requirement)
    return _normal(match[0] if match else requirement)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _same(locked: str, wanted: str) -> bool:
    """2.13.0+cpu in the lock fits 2.13.0 in the recipe; a local part that the recipe names must be that one."""
    return locked == wanted or ("+" not in wanted and locked.split("+", 1)[0] == wanted)


def _engine(recipe: Recipe, locked: LockedEngine) -> Iterator[str]:
    source = recipe.engine.source
    if isinstance(source, Git):
        commit = locked.resolved.rpartition("@")[2]
        if locked.kind != "git" or locked.resolved.rpartition("@")[0] != source.git:
            yield _was("engine", "source", locked.resolved, source.git)
        elif source.commit not in (None, commit):
            yield _was("engine", "commit", commit, source.commit)
    elif isinstance(source, LocalFolder):
        if locked.kind != "folder" or locked.resolved != source.path:
            yield _was("engine", "source", locked.resolved, source.path)
    elif locked.kind != "builtin":
        yield _was("engine", "source", locked.resolved, source)
