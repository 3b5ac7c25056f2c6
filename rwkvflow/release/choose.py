"""Which file of a release for how much memory: the one that loses least among those that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rwkvflow.documents.formats import family_of
from rwkvflow.release.quality import ArtifactFigures, Quality
from rwkvflow.worker.formats.runtimes import RUNTIMES

ROOM = 100_000_000  # bytes beside the weights that a runtime has to have at least


@dataclass(frozen=True)
class Runnable:
    """A file, the runtimes that read it, and the memory that running it takes, about, in bytes."""

    figures: ArtifactFigures
    runtimes: tuple[str, ...]
    memory: int

    @property
    def loss(self) -> float:
        """What is compared: the KL divergence; infinite where it was not measured."""
        found = self.figures.kl_divergence
        return math.inf if found is None else found


def memory_of(size: int) -> int:
    """The weights, and a tenth of them for all else, or ROOM where that is more."""
    return size + max(size // 10, ROOM)


def choices(quality: Quality, runtime: str | None = None, model: str | None = None) -> list[Runnable]:
    """The files that a runtime reads (None: any) of a model (None: all), the smallest first."""
    found = []
    for figures in quality.artifacts:
        family = family_of(figures.format)
        readers = tuple(item.name for item in RUNTIMES if family in item.families)
        if (runtime is None or runtime in readers) and (model is None or figures.model == model):
            found.append(Runnable(figures, readers, memory_of(figures.size)))
    return sorted(found, key=lambda choice: (choice.figures.size, choice.figures.path))


def best(found: Sequence[Runnable], memory: int) -> Runnable | None:
    """The one that loses least of those that fit, the smaller of two that lose the same; None where nothing fits."""
    fitting = [choice for choice in found if choice.memory <= memory]
    return min(fitting, key=lambda choice: (choice.loss, choice.figures.size, choice.figures.path), default=None)
