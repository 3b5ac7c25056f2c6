"""Models that are a graph with its weights beside it: what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.rawfile import is_there


@dataclass(frozen=True)
class GraphTensor:
    """A weight. nbytes: of its values."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class GraphIndex:
    """metadata: what the graph says of itself. files: those beside the model. problem: why no weights are listed."""

    metadata: dict[str, Any]
    tensors: list[GraphTensor]
    files: list[Path]
    problem: str | None = None


def beside(model: Path, name: str) -> Path:
    """The file of a model's weights, in its own folder. Raises WorkerError where it is missing."""
    path = model.with_name(name)
    if not is_there(path):
        raise WorkerError(f"{model.name}: its weights, {name}, are missing. Download or copy them beside it.")
    return path
