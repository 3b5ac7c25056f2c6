"""The format names that documents may use, and what their files are called."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkvflow.worker.formats.outside import FormatPackage


@cache
def suffixes() -> dict[str, str]:
    """Format name → end of its files' names, in the registry's order."""
    from rwkvflow.worker.formats import FORMATS

    return {name: item.suffix for name, item in FORMATS.items()}


def format_names() -> tuple[str, ...]:
    """All format names in the registry's order."""
    return tuple(suffixes())


def is_format(name: str) -> bool:
    """Whether this is the name of a format: one of the listed, or one that a strategy makes."""
    from rwkvflow.worker.formats import FORMATS

    return name in FORMATS


def strategy_format(strategy: str) -> str:
    """The name of the format for a strategy of the rwkv package. Raises ValueError with what is wrong with it."""
    from rwkvflow.worker.formats.chatrwkv.layout import of_strategy

    return of_strategy(strategy).name


def splitting() -> tuple[str, ...]:
    """The formats whose files can be split, in the registry's order."""
    from rwkvflow.worker.formats import FORMATS

    return tuple(name for name, item in FORMATS.items() if item.splits)


def runs_in_librwkv(name: str, version: str = "") -> bool:
    """Whether librwkv runs files of this format; False for one that is not known here.

    `version` is the model's, "" where it is not known.
    """
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.runtimes import runs

    found = FORMATS.get(name)
    if found is None or not runs("librwkv", version):
        return False
    return found.consumer == "librwkv" or bool(found.quick_runner)


def file_name(model: str, format_name: str) -> str:
    """The file name of an artifact."""
    from rwkvflow.worker.formats import FORMATS

    return model + FORMATS[format_name].suffix


def folder_name(model: str, format_name: str) -> tuple[str, str]:
    """The folder of an artifact that had to be split, and how the names of its files begin."""
    stem, dot, ending = file_name(model, format_name)[len(model) :].rpartition(".")
    return (f"{model}{stem}-{ending}", model + stem) if dot else (model + ending, "model")


def consumers(names: Iterable[str]) -> tuple[str, ...]:
    """What the consumers of these formats need in an image, sorted: names of packages, or whole requirements."""
    from rwkvflow.worker.formats import FORMATS

    return tuple(sorted({item for name in names if name in FORMATS for item in FORMATS[name].requires}))


def engines(names: Iterable[str]) -> tuple[str, ...]:
    """What has to be built for the consumers of these formats, sorted."""
    from rwkvflow.worker.formats import FORMATS

    return tuple(sorted({engine for name in names if name in FORMATS and (engine := FORMATS[name].engine)}))


def family_of(format_name: str) -> str:
    """What formats of a kind have in common, as a tag; the name itself of a format that is not known here."""
    from rwkvflow.worker.formats import FORMATS

    found = FORMATS.get(format_name)
    return format_name if found is None else found.family or found.name


def quantization_of(format_name: str) -> str:
    """How a format's weights are quantized; "" where they are not, or the format is not known here."""
    from rwkvflow.worker.formats import FORMATS

    found = FORMATS.get(format_name)
    return "" if found is None else found.quantization


def outside(names: Iterable[str]) -> dict[str, FormatPackage]:
    """The installed packages that some of these formats come from, by name and in its order."""
    from rwkvflow.worker.formats import FORMATS, package_of

    used = [package_of(FORMATS[name]) for name in names if name in FORMATS]
    return {item.name: item for item in sorted((item for item in used if item), key=lambda item: item.name)}


def broken() -> dict[str, str]:
    """Packages that should add formats and cannot be loaded, with the reason."""
    from rwkvflow.worker.formats import FORMATS

    return dict(FORMATS.broken)


def needs_torch(format_name: str) -> str | None:
    """The consumer of a format that needs PyTorch, None where it does not."""
    from rwkvflow.worker.formats import FORMATS

    found = FORMATS.get(format_name)
    return found.consumer if found is not None and found.needs_torch else None
