"""Which versions go into images/pins.yaml's roles for a given Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from rwkvflow.base.errors import LockError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import Lock, LockedPackage, LockedWheel

ROLES = ("toolchain", "worker")
INSTALLER = "pip"  # in locks that were made before images got the files of wheels as they are
CONSUMERS = "consumers"  # a role of pins.yaml that is no role of a lock: what formats ask for joins the worker's wheels

# What the worker itself imports, or reads the World vocabulary from: all that converts and judges.
WORKED_WITH = frozenset({"numpy", "safetensors", "tokenizers", "pyrwkv-tokenizer", "rwkv"})


@cache
def _document() -> dict[str, Any]:
    """images/pins.yaml."""
    found: dict[str, Any] = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))
    return found


def _pins() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {role: _document()[role] for role in (*ROLES, CONSUMERS)}


def pinned(python: str, toolchain: str = "zig") -> dict[str, tuple[str, ...]]:
    """Requirements such as "numpy==2.4.6" by role, for a Python such as "3.11".

    The toolchain role is empty for the system toolchain. Raises LockError for a Python that a package no longer or
    not yet supports.
    """
    result: dict[str, tuple[str, ...]] = {}
    for role in ROLES:
        packages = _pins()[role]
        if role == "toolchain" and toolchain != "zig":
            result[role] = ()
            continue
        result[role] = tuple(f"{name}=={_choose(name, entries, python)}" for name, entries in packages.items())
    return result


def consumer(requirement: str, python: str) -> str:
    """What a format asks for, with its version: "msgpack" as "msgpack==1.2.4"; a requirement with one stays.

    Raises LockError for a Python that the package does not support.
    """
    entries = _pins()[CONSUMERS].get(requirement)
    return requirement if entries is None else f"{requirement}=={_choose(requirement, entries, python)}"


def package(name: str) -> LockedPackage:
    """The source package that is pinned for what is built to test formats with, such as "llama.cpp"."""
    return LockedPackage.model_validate(_packages()[name])


def _packages() -> dict[str, Any]:
    found: dict[str, Any] = _document()["packages"]
    return found


def judging(wheels: Iterable[LockedWheel]) -> tuple[LockedWheel, ...]:
    """Which of a lock's wheels are installed where artifacts are made and judged.

    All, where each is a package that rwkvflow pins or that such a one brings. As soon as there is another, whether a
    recipe or only a lock names it, those alone that the worker itself works with: what a package installs can run
    in any Python of its environment, and could forge a verdict. Names are enough to tell, for wheels come by name,
    version and hash from the package index that this machine is set up with.
    """
    wheels = tuple(wheels)
    known = _known()
    if all(canonicalize_name(wheel.name) in known for wheel in wheels):
        return wheels
    return tuple(wheel for wheel in wheels if canonicalize_name(wheel.name) in WORKED_WITH)


def brings(lock: Lock) -> str | None:
    """What code a lock brings into the sandbox that rwkvflow does not pin, in words."""
    for image in lock.images.values():
        for wheels in image.platforms.values():
            for wheel in wheels.worker:
                if canonicalize_name(wheel.name) not in _known():
                    return f"the lock names the package {wheel.name}"
    return None


@cache
def _known() -> frozenset[str]:
    names = [*_pins()["worker"], *_pins()[CONSUMERS], *_document()["dependencies"]]
    return WORKED_WITH | {canonicalize_name(name) for name in names}


def strangers(lock: Lock) -> list[str]:
    """What a lock names, in words, that would run outside of the sandbox, and is not what rwkvflow would name there.

    uv installs the wheels of an environment, on the host for the host's; and a source package is only unpacked while
    it is the one that is pinned: pip knows of no other way to bring one than to have it describe itself.
    """
    found = []
    for image, locked in sorted(lock.images.items()):
        for platform, wheels in sorted(locked.platforms.items()):
            for role, pins in (("installer", [INSTALLER]), ("toolchain", _pins()["toolchain"])):
                known = {canonicalize_name(name) for name in pins}
                found += [
                    f"images.{image} ({platform}): {wheel.name} is no {role} of rwkvflow's"
                    for wheel in getattr(wheels, role)
                    if canonicalize_name(wheel.name) not in known
                ]
    for name, locked_package in sorted((lock.packages or {}).items()):
        if name not in _packages() or locked_package != package(name):
            found.append(f"packages.{name}: not the source package that this rwkvflow builds")
    return found


def _choose(name: str, entries: Iterable[Mapping[str, str]], python: str) -> str:
    ranges = []
    for entry in entries:
        wanted = entry.get("python", ">=3")
        if Version(python) in SpecifierSet(wanted):
            return entry["version"]
        ranges.append(wanted)
    raise LockError(
        f"no pinned version of {name} runs on Python {python}",
        remedy=f"choose an image with Python {' or '.join(ranges)}",
    )
