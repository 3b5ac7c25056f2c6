"""Which versions go into images/pins.yaml's roles for a given Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from rwkvflow.base.errors import LockError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import LockedPackage

ROLES = ("installer", "toolchain", "worker")
CONSUMERS = "consumers"  # a role of pins.yaml that is no role of a lock: what formats ask for joins the worker's wheels


@cache
def _pins() -> dict[str, dict[str, list[dict[str, Any]]]]:
    document = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))
    return {role: document[role] for role in (*ROLES, CONSUMERS)}


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
    """The source package that is pinned for what is built to prove formats, such as "llama.cpp"."""
    document = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))
    return LockedPackage.model_validate(document["packages"][name])


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
