"""Which file of a release for how much memory: the one that loses least among those that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rwkvflow.documents.formats import family_of
from rwkvflow.release.artifacts import Row
from rwkvflow.release.quality import Quality
from rwkvflow.worker.formats.runtimes import RUNTIMES

ROOM = 100_000_000  # bytes beside the weights that a runtime has to have at least


@dataclass(frozen=True)
class Runnable:
    """A file or folder, the programs that read it, and the memory that running it takes, about, in bytes.

    kl_divergence None: not measured. speed_class: see below.
    """

    path: str
    model: str
    format: str
    size: int
    runtimes: tuple[str, ...]
    kl_divergence: float | None
    speed_class: float | None = None

    @property
    def memory(self) -> int:
        """See memory_of."""
        return memory_of(self.size)

    @property
    def loss(self) -> float:
        """What is compared: the KL divergence; infinite where it was not measured."""
        return math.inf if self.kl_divergence is None else self.kl_divergence


def memory_of(size: int) -> int:
    """The weights, and a tenth of them for all else, or ROOM where that is more."""
    return size + max(size // 10, ROOM)


def speed_class(bits: float | None) -> float | None:
    """How many times fewer bytes a token reads than with 16 bits a weight, in halves.

    Reading weights from memory is what bounds the decoding of one sequence. None where the bits are not known.
    """
    return None if not bits else max(round(2 * 16 / bits) / 2, 0.5)


def readers_of(format_name: str, version: str = "") -> tuple[str, ...]:
    """The programs that read a format's files and run the version; "" for one that is not known."""
    family = family_of(format_name)
    return tuple(r.name for r in RUNTIMES if family in r.families and (not version or version in r.runs))


def of_quality(quality: Quality) -> list[Runnable]:
    """The artifacts of a quality.json."""
    return [
        Runnable(
            item.path,
            item.model,
            item.format,
            item.size,
            readers_of(item.format),
            item.kl_divergence,
            speed_class(item.bits_per_weight),
        )
        for item in quality.artifacts
    ]


def of_rows(rows: Iterable[Row]) -> list[Runnable]:
    """The artifacts of a release that is being made."""
    found = []
    for row in rows:
        version = str((row.facts.get("architecture") or {}).get("version") or "")
        divergence = row.smoke.get("kl_divergence")
        loss = None if divergence is None else float(divergence)
        readers = readers_of(row.format, version)
        found.append(Runnable(row.path, row.model, row.format, row.size, readers, loss, speed_class(row.bits)))
    return found


def choices(listed: Iterable[Runnable], runtime: str | None = None, model: str | None = None) -> list[Runnable]:
    """Those that a runtime reads (None: any) of a model (None: all), the smallest first."""
    found = [
        item
        for item in listed
        if (runtime is None or runtime in item.runtimes) and (model is None or item.model == model)
    ]
    return sorted(found, key=lambda item: (item.size, item.path))


def best(found: Sequence[Runnable], memory: int) -> Runnable | None:
    """The one that loses least of those that fit, the smaller of two that lose the same; None where nothing fits."""
    fitting = [choice for choice in found if choice.memory <= memory]
    return min(fitting, key=lambda choice: (choice.loss, choice.size, choice.path), default=None)


def best_for_some(found: Sequence[Runnable]) -> list[Runnable]:
    """Those that are the best for some size of memory, the smallest first: each from its memory to the next's."""
    kept: list[Runnable] = []
    for item in sorted(found, key=lambda choice: (choice.memory, choice.loss, choice.size, choice.path)):
        if not kept or item.loss < kept[-1].loss:
            kept.append(item)
    return kept
