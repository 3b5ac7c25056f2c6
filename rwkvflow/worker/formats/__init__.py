"""The registry of formats: every folder of this package, whose `layout.py` has a tuple FORMATS, adds to it.

A module may also have a function `named`, which makes a format of a name that is in no list, or gives None. Importing
needs the standard library alone; the command line does so to check recipes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from rwkvflow.worker.formats.base import Format, Limits, Split
from rwkvflow.worker.write.layout import Writer

__all__ = ["FORMATS", "Format", "Limits", "Split", "Writer", "too_large"]


class Registry(dict[str, Format]):
    """Formats by name. Iterating gives those that are listed; looking up also finds those that a name describes."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: list[Callable[[str], Format | None]] = []

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


def _collect() -> Registry:
    found = Registry()
    for name in sorted(info.name for info in pkgutil.iter_modules(__path__) if info.ispkg):
        module = importlib.import_module(f"{__name__}.{name}.layout")
        formats: tuple[Format, ...] = getattr(module, "FORMATS", ())
        for item in formats:
            if dict.__contains__(found, item.name):
                raise RuntimeError(f"two formats are named {item.name}")
            found[item.name] = item
        if (make := getattr(module, "named", None)) is not None:
            found.makers.append(make)
    return found


FORMATS: Registry = _collect()


def too_large(item: Format, size: int) -> str | None:
    """Why an artifact of `size` bytes cannot be made as its `split` wants; None where it can."""
    if item.split is None or item.splits or size <= item.split.size:
        return None
    able = ", ".join(name for name, other in FORMATS.items() if other.splits)
    return (
        f"{item.name} would have {size} bytes, more than the {item.split.size} of `split`, and no program reads it in "
        f"parts; these can be split: {able}"
    )
