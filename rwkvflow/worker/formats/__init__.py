"""The registry of formats: every module of this package that has a tuple FORMATS adds to it.

Importing it needs the standard library alone; the command line does so to check recipes.
"""

from __future__ import annotations

import importlib
import pkgutil

from rwkvflow.worker.formats.base import Format, Limits, Writer

__all__ = ["FORMATS", "Format", "Limits", "Writer"]


def _collect() -> dict[str, Format]:
    found: dict[str, Format] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        formats: tuple[Format, ...] = getattr(importlib.import_module(f"{__name__}.{module}"), "FORMATS", ())
        for item in formats:
            if item.name in found:
                raise RuntimeError(f"two formats are named {item.name}")
            found[item.name] = item
    return found


FORMATS: dict[str, Format] = _collect()
