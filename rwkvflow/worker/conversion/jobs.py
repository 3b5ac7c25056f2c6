"""What a conversion is to make, and what can be said of it before a byte is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import NoSpaceError, WorkerError
from rwkvflow.worker.formats import FORMATS, too_large
from rwkvflow.worker.formats.base import Format, Split
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.write.layout import Written

if TYPE_CHECKING:
    from rwkvflow.worker.formats.gguf.imatrix import Imatrix
    from rwkvflow.worker.formats.mix import Mix
    from rwkvflow.worker.model.about import About
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo


@dataclass(frozen=True)
class ConversionJob:
    """An artifact to make: `id` is for whoever asked. `split`: no file of it should be larger than that.

    `imatrix`: the importance matrix that it is quantized with, where its format takes one. `about`: what the file says
    of its model, where its format has a place for that. `mix`: types of single tensors, where it takes some.
    """

    id: str
    format: str
    path: Path
    split: Split | None = None
    imatrix: Imatrix | None = None
    about: About | None = None
    mix: Mix | None = None


@dataclass
class ConversionOutcome:
    """What became of a job: `written`, or `failure` as a sentence. `warnings` are for the log."""

    job: ConversionJob
    written: Written | None = None
    failure: str | None = None
    full: bool = False  # it failed for want of space on the disk
    warnings: list[str] = field(default_factory=list)


def format_of(job: ConversionJob, source: Path | Origin | None = None) -> Format | None:
    """The format of a job, split as it wants, for a model at `source`; None for an unknown one."""
    found: Format | None = FORMATS.get(job.format)
    if found is None:
        return None
    imatrix, about = job.imatrix if found.weighs else None, job.about if found.tells else None
    found = replace(found, split=job.split, imatrix=imatrix, about=about, mix=job.mix if found.mixes else None)
    if source is None:
        return found
    return found.beside((source if isinstance(source, Origin) else Origin(source)).folder)


def check_room(
    outcomes: Sequence[ConversionOutcome],
    architecture: Architecture,
    tensors: Mapping[str, TensorInfo],
    source: Path | Origin | None = None,
) -> None:
    """Settle what cannot be done before anything is written. Raises WorkerError when the disk is too small."""
    needed: dict[Path, int] = {}
    for outcome in outcomes:
        item = format_of(outcome.job, source)
        if item is None:
            outcome.failure = f"unknown format {outcome.job.format!r}; there are {', '.join(FORMATS)}"
            continue
        outcome.failure = item.refuse(architecture)
        if outcome.failure is None:
            try:
                size = item.expected_size(architecture, item.held(architecture, tensors))
            except WorkerError as error:
                outcome.failure = str(error)
                continue
            outcome.failure = too_large(item, size)
            if outcome.failure is None:
                needed[outcome.job.path.parent] = needed.get(outcome.job.path.parent, 0) + size
    devices: dict[int, tuple[int, int]] = {}
    for folder, size in needed.items():
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        device = folder.stat().st_dev
        devices[device] = (devices.get(device, (0, 0))[0] + size, free)
    for size, free in devices.values():
        if size > free:
            raise NoSpaceError(
                f"the artifacts need {shown_bytes(size)}, and {shown_bytes(free)} are free on the disk that takes them"
                "; free some, or put the store on another disk"
            )


def shown_bytes(size: int) -> str:
    """For messages, in the words of rwkvflow.base.text.bytes_text, which is not there in a sandbox."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.999995 * limit:  # 1.00 with two digits
            return f"{size / limit:.2f} {unit}"
    return f"{size} B"
