"""The format names that documents may use, and what their files are called."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache


@cache
def suffixes() -> dict[str, str]:
    """Format name → end of its files' names, in the registry's order."""
    from rwkvflow.worker.formats import FORMATS

    return {name: item.suffix for name, item in FORMATS.items()}


def format_names() -> tuple[str, ...]:
    """All format names in the registry's order."""
    return tuple(suffixes())


def file_name(model: str, format_name: str) -> str:
    """The file name of an artifact."""
    return model + suffixes()[format_name]


def consumers(names: Iterable[str]) -> tuple[str, ...]:
    """What the consumers of these formats need in an image, sorted: names of packages, or whole requirements."""
    from rwkvflow.worker.formats import FORMATS

    return tuple(sorted({item for name in names if name in FORMATS for item in FORMATS[name].requires}))


def engines(names: Iterable[str]) -> tuple[str, ...]:
    """What has to be built for the consumers of these formats, sorted."""
    from rwkvflow.worker.formats import FORMATS

    return tuple(sorted({engine for name in names if name in FORMATS and (engine := FORMATS[name].engine)}))


def needs_torch(format_name: str) -> str | None:
    """The consumer of a format that needs PyTorch, None where it does not."""
    from rwkvflow.worker.formats import FORMATS

    found = FORMATS.get(format_name)
    return found.consumer if found is not None and found.needs_torch else None
