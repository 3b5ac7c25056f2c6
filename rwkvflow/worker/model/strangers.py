"""What of a checkpoint is none of its version's tensors: leftovers of trainers, and what nobody here knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from rwkvflow.worker import advice
from rwkvflow.worker.errors import UnknownModelError
from rwkvflow.worker.model.architecture import Architecture, unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.variants import refuse_variant
from rwkvflow.worker.model.versions import HARMLESS

SHOWN: Final = 4  # tensors that a message names


def refuse_unknown(tensors: Mapping[str, TensorInfo], architecture: Architecture) -> None:
    """Raises UnknownModelError that names, with their shapes, tensors whose meaning nobody here knows."""
    found = unknown(tensors, architecture)
    if not found:
        return
    listed = ", ".join(f"{name[:120]!a} {list(tensors[name].shape)}" for name in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UnknownModelError(
        f"no tensors of version {architecture.version}, and nobody here knows what they do: {listed}{more}. "
        f"Where they do not change what the model computes, leave them out by name: {advice.ignore_tensors()}"
    )


def ignored(tensors: Mapping[str, TensorInfo], patterns: Sequence[str]) -> list[str]:
    """The tensors that the patterns leave out, in the checkpoint's order.

    Raises UnknownModelError for a pattern that none has, and where a variant is to be made a plain version that way.
    """
    if not patterns:
        return []
    refuse_variant(tensors)
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in tensors)]:
        raise UnknownModelError(f"tensors to ignore: no tensor is called like {', '.join(map(ascii, idle))}")
    return [name for name in tensors if any(fnmatchcase(name, pattern) for pattern in patterns)]


def leftovers(architecture: Architecture, names: Collection[str]) -> list[str]:
    """What trainers left behind, which no runtime looks at."""
    return [name for name in architecture.extra if name in names and HARMLESS.fullmatch(name)]
