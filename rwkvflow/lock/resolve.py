"""Lock resolution: every input of a recipe brought down to digests, all problems reported together.

What the previous lock says about an unchanged part of the recipe is kept, so that making a lock again changes only
what the recipe changed. Without a previous lock everything is looked up anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rwkvflow.base.errors import DocumentError, Interrupted, LockError, RwkvflowError, StoreError
from rwkvflow.base.events import Listener, Notice, StepProgress, silent
from rwkvflow.base.hashing import tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import (
    BUILTIN_TOKENIZERS,
    Lock,
    LockedBase,
    LockedEngine,
    LockedFile,
    LockedImage,
    LockedPackage,
    LockedWheel,
    LockedWheels,
    adapters_of,
    added_by,
    calibration_file,
    consumers_of,
    fits_base,
    packages_of,
    recipe_digest,
)
from rwkvflow.documents.recipe import Git, Image, LocalFolder, Recipe
from rwkvflow.lock.files import Files
from rwkvflow.lock.pins import consumer, package, pinned
from rwkvflow.net.git import resolve_git
from rwkvflow.net.http import Policy
from rwkvflow.net.packages.wheels import resolve_wheels
from rwkvflow.store.store import Store

BaseOf = Callable[[str | None, str], LockedBase | None]  # (what the recipe or the lock before names, its Python)
T = TypeVar("T")


def resolve(
    recipe: Recipe,
    recipe_path: Path,
    *,
    platforms: Sequence[str],
    base_of: BaseOf,
    previous: Lock | None = None,
    store: Store,
    emit: Listener = silent,
    cancel: threading.Event | None = None,
    policy: Policy | None = None,
) -> Lock:
    """The lock of a recipe.

    `platforms` are those that wheels are wanted for, e.g. ["linux-x86_64"]; those of the previous lock are kept up.
    `base_of` tells what a base image's reference stands for, and which one an image without any gets (None: not asked
    now). Files that must be downloaded to
    know their sha256 end up in the store. Raises what went wrong, all of it at once: the class of the problem where
    there is one kind, LockError where there are several.
    """
    cancel = cancel or threading.Event()
    work = _Work(recipe, recipe_path.parent, previous, store, emit, cancel)
    files = Files(recipe_path.parent, store, emit, cancel, policy or Policy())
    models: dict[str, LockedFile] = {}
    adapters: dict[str, dict[str, LockedFile]] = {"lora": {}, "lora_init": {}, "state": {}}
    tokenizers: dict[str, LockedFile] = {}
    texts: dict[str, LockedFile] = {}
    images: dict[str, LockedImage] = {}
    engines: list[LockedEngine] = []
    tasks = _Tasks()
    for model in recipe.models:
        before = previous.models.get(model.name) if previous else None
        tasks.add(
            f"models.{model.name}",
            models,
            model.name,
            files.model,
            model.name,
            model.source,
            model.sha256,
            before,
            model.ignore_tensors,
        )
        for kind, item in adapters_of(model).items():
            known = (getattr(previous, f"{kind}s") or {}).get(model.name) if previous else None
            name = f"{model.name}/{kind}"
            tasks.add(
                f"{kind}s.{model.name}", adapters[kind], model.name, files.file, name, item.source, item.sha256, known
            )
        if model.tokenizer not in BUILTIN_TOKENIZERS:
            before = previous.tokenizers.get(model.name) if previous else None
            name = f"{model.name}/tokenizer"
            tasks.add(
                f"tokenizers.{model.name}", tokenizers, model.name, files.file, name, model.tokenizer, None, before
            )
        if (text := calibration_file(model)) is not None:
            before = (previous.texts or {}).get(model.name) if previous else None
            tasks.add(f"texts.{model.name}", texts, model.name, files.file, f"{model.name}/text", text, None, before)
    bases = cache(base_of)
    for image in recipe.images:
        tasks.add(f"images.{image.name}", images, image.name, work.image, image, platforms, bases)
    tasks.call("engine", lambda: engines.append(work.engine()))
    tasks.finish(cancel)
    return Lock(
        recipe=recipe_digest(recipe),
        models=models,
        tokenizers=tokenizers,
        loras=adapters["lora"] or None,
        lora_inits=adapters["lora_init"] or None,
        states=adapters["state"] or None,
        texts=texts or None,
        images=images,
        engine=engines[0],
        packages=packages_for(recipe),
        formats=added_by(recipe),
    )


def packages_for(recipe: Recipe) -> dict[str, LockedPackage] | None:
    """Source packages of what formats are tested with: the pinned ones, which our own code is written for."""
    return {name: package(name) for name in packages_of(recipe)} or None


def requirements_of(recipe: Recipe, image: Image) -> dict[str, tuple[str, ...]]:
    """What is installed into an image, by role: the pins, and for the worker what the recipe and its formats add.

    A package that the recipe names itself replaces its pin.
    """
    roles = pinned(image.python, recipe.engine.toolchain)
    added = list(image.wheels)
    kinds = {model.tokenizer for model in recipe.models}
    if "world" in kinds:
        added.append("pyrwkv-tokenizer")
    if kinds - BUILTIN_TOKENIZERS:
        added.append("tokenizers")
    added += [text for item in consumers_of(recipe)[image.name] if (text := consumer(item, image.python)) not in added]
    named = {canonicalize_name(Requirement(text).name) for text in image.wheels}
    worker = [text for text in (*roles["worker"], *added[len(image.wheels) :]) if _name(text) not in named]
    worker += image.wheels
    if image.torch:
        worker.append(f"torch=={image.torch}")
    return {**roles, "worker": tuple(worker)}


@dataclass
class _Work:
    recipe: Recipe
    folder: Path
    previous: Lock | None
    store: Store
    emit: Listener
    cancel: threading.Event
    unchanged: bool = field(init=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)
    _known: dict[Any, Future[tuple[LockedWheel, ...]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.unchanged = self.previous is not None and self.previous.recipe == recipe_digest(self.recipe)

    # ---- images ------------------------------------------------------------------------------------------------

    def image(self, image: Image, platforms: Sequence[str], base_of: BaseOf) -> LockedImage:
        """Base image and wheels."""
        before = self.previous.images.get(image.name) if self.previous else None
        roles = requirements_of(self.recipe, image)
        locked: dict[str, LockedWheels] = {}
        for platform in dict.fromkeys([*platforms, *(before.platforms if before else ())]):
            known = before.platforms.get(platform) if before and before.python == image.python else None
            if (
                known is not None
                and self.unchanged
                and all(_satisfied(roles[role], _of(known, role)) for role in roles)
            ):
                locked[platform] = known
                continue
            try:
                locked[platform] = self._wheels(image, platform, roles, known)
            except LockError as error:
                if platform in platforms:
                    raise
                self.emit(
                    Notice(
                        f"images.{image.name}: wheels for {platform} are no longer locked: {error.message}", "warning"
                    )
                )
        return LockedImage(python=image.python, base=self._base(image, before, base_of), platforms=locked)

    def _wheels(
        self, image: Image, platform: str, roles: dict[str, tuple[str, ...]], before: LockedWheels | None
    ) -> LockedWheels:
        def role(name: str) -> tuple[LockedWheel, ...]:
            kept = _of(before, name) if before else ()
            return self._resolved(image.python, platform, roles[name], kept)

        self.emit(StepProgress(f"lock/{image.name}", 0, None, "", f"wheels for {platform}"))
        with ThreadPoolExecutor(max_workers=2) as pool:
            return LockedWheels(**dict(zip(roles, pool.map(role, roles), strict=True)))

    def _resolved(
        self, python: str, platform: str, requirements: tuple[str, ...], kept: tuple[LockedWheel, ...]
    ) -> tuple[LockedWheel, ...]:
        """resolve_wheels, once for images that want the same."""
        key = (python, platform, requirements, kept)
        with self._guard:
            mine = key not in self._known
            future = self._known.setdefault(key, Future())
        if mine:
            try:
                found = resolve_wheels(python, platform, requirements, constraints=kept, cancel=self.cancel)
                future.set_result(tuple(found))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _base(self, image: Image, before: LockedImage | None, base_of: BaseOf) -> LockedBase | None:
        known = before.base if before and before.base and fits_base(image, before.base) else None
        if known is not None and known.kind == "registry":
            return known
        return base_of(known.reference if known else image.base, image.python) or known

    # ---- engine ------------------------------------------------------------------------------------------------

    def engine(self) -> LockedEngine:
        """The engine's sources: a commit, or a digest of what lies here."""
        source = self.recipe.engine.source
        if isinstance(source, Git):
            if source.commit is None and self.unchanged and self.previous and self.previous.engine.kind == "git":
                return self.previous.engine
            commit = source.commit or resolve_git(source.git, source.ref, cwd=self.folder, cancel=self.cancel)
            return LockedEngine(kind="git", resolved=f"{source.git}@{commit}")
        if isinstance(source, LocalFolder):
            path = self.folder / Path(source.path).expanduser()
            if not (path / "CMakeLists.txt").is_file():
                raise LockError(
                    f"{source.path} {'has no CMakeLists.txt' if path.is_dir() else 'is no folder'}",
                    remedy="engine.source.path is the folder of a CMake project, relative to the recipe",
                )
            return LockedEngine(kind="folder", resolved=source.path, digest=tree_digest(path))
        return LockedEngine(kind="builtin", resolved="builtin", digest=tree_digest(PACKAGE / "engine"))


class _Tasks:
    """Things to look up at the same time; the network answers slowly."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="lock")
        self._futures: list[tuple[str, Future[None]]] = []

    def call(self, place: str, function: Callable[[], None]) -> None:
        self._futures.append((place, self._pool.submit(function)))

    def add(self, place: str, into: dict[str, T], key: str, function: Callable[..., T], *arguments: Any) -> None:
        """into[key] = function(*arguments), later."""

        def run() -> None:
            into[key] = function(*arguments)

        self.call(place, run)

    def finish(self, cancel: threading.Event) -> None:
        """Wait for all of them. Raises their problems together; `cancel` is set when the wait is interrupted."""
        try:
            self._pool.shutdown(wait=True)
        except BaseException:
            cancel.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            raise
        problems: list[tuple[str, RwkvflowError]] = []
        for place, future in self._futures:
            error = future.exception()
            if isinstance(error, RwkvflowError):
                problems.append((place, error))
            elif error is not None:
                raise error
        for _, error in problems:
            if isinstance(error, Interrupted | StoreError | DocumentError):
                raise error
        if problems:
            raise _together(problems)


def _together(problems: Sequence[tuple[str, RwkvflowError]]) -> RwkvflowError:
    kinds = {type(error) for _, error in problems}
    kind = kinds.pop() if len(kinds) == 1 else LockError
    if len(problems) == 1:
        place, error = problems[0]
        return kind(f"{place}: {error.message}", remedy=error.remedy)
    return kind(f"{len(problems)} inputs cannot be locked\n" + "\n".join(_lines(problems)))


def _lines(problems: Sequence[tuple[str, RwkvflowError]]) -> Iterator[str]:
    for place, error in problems:
        yield f"  {place}: {error.message}"
        if error.remedy:
            yield f"    remedy: {error.remedy}"


def _of(wheels: LockedWheels, role: str) -> tuple[LockedWheel, ...]:
    found: tuple[LockedWheel, ...] = getattr(wheels, role)
    return found


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _satisfied(requirements: Sequence[str], wheels: Sequence[LockedWheel]) -> bool:
    """Whether each requirement's package is locked in a version that fits (our own pins may have moved on)."""
    locked = {wheel.name: Version(wheel.version) for wheel in wheels}
    if bool(locked) != bool(requirements):
        return False
    for text in requirements:
        requirement = Requirement(text)
        version = locked.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            return False
    return True
