"""The registry of formats: every folder of this package, whose `layout.py` has a tuple FORMATS, adds to it.

So does an installed package that has an entry point for it (see outside.py). A module may also have a function `named`,
which makes a format of a name that is in no list, or gives None. Importing needs the standard library alone; the
command line does so to check recipes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.outside import FormatPackage, packages

__all__ = ["FORMATS", "Format", "able_to_hold", "package_of", "too_large"]


class Registry(dict[str, Format]):
    """Formats by name. Iterating gives those that are listed; looking up also finds those that a name describes.

    packages   the installed packages that add some
    broken     what is wrong with those that could not be loaded, by their names
    """

    def __init__(self) -> None:
        super().__init__()
        self.makers: list[Callable[[str], Format | None]] = []
        self.packages: list[FormatPackage] = []
        self.broken: dict[str, str] = {}

    def __missing__(self, name: str) -> Format:
        for make in self.makers:
            if (found := make(name)) is not None:
                return found
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The format of this name, or `default` if there is none."""
        try:
            return self[name]
        except KeyError:
            return default

    def add(self, module: Any) -> None:
        """What a module `layout` names. Raises RuntimeError, and adds nothing, where a name is taken."""
        formats: tuple[Format, ...] = getattr(module, "FORMATS", ())
        for item in formats:
            if dict.__contains__(self, item.name):
                raise RuntimeError(f"two formats are named {item.name}")
        for item in formats:
            self[item.name] = item
        if (make := getattr(module, "named", None)) is not None:
            self.makers.append(make)


def _collect() -> Registry:
    found = Registry()
    for name in sorted(info.name for info in pkgutil.iter_modules(__path__) if info.ispkg):
        found.add(importlib.import_module(f"{__name__}.{name}.layout"))
    try:
        outside = packages()
    except WorkerError as error:
        found.broken["entry points"] = str(error)
        return found
    for package in outside:
        # Code that is not ours must not keep ours from working: who asks for its formats is told what is wrong.
        try:
            found.add(importlib.import_module(f"{package.module}.layout"))
            found.packages.append(package)
        except Exception as error:
            found.broken[package.name] = f"{type(error).__name__}: {error}"
    return found


FORMATS: Registry = _collect()


def package_of(item: Format) -> FormatPackage | None:
    """The installed package that a format comes from; None for our own."""
    return next(
        (found for found in FORMATS.packages if f"{type(item).__module__}.".startswith(f"{found.module}.")), None
    )


def able_to_hold(version: str) -> str:
    """The formats that hold a version, for a message: a name, or ggml-* where all that begin so do."""
    able = [name for name, item in FORMATS.items() if version in item.versions]
    rest = [name for name in FORMATS if name not in able]
    shown: dict[str, None] = {}
    for name in able:
        begin = f"{name.partition('-')[0]}-"
        alike = name.startswith(begin) and sum(other.startswith(begin) for other in able) > 1
        shown[f"{begin}*" if alike and not any(other.startswith(begin) for other in rest) else name] = None
    return ", ".join(shown)


def too_large(item: Format, size: int) -> str | None:
    """Why an artifact of `size` bytes cannot be made as its `split` wants; None where it can."""
    if item.split is None or item.splits or size <= item.split.size:
        return None
    able = ", ".join(name for name, other in FORMATS.items() if other.splits)
    return (
        f"{item.name} would have {size} bytes, more than the {item.split.size} of `split`, and no program reads it in "
        f"parts; these can be split: {able}"
    )
