"""A checkpoint as librwkv runs it: converted for as long as a task needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rwkvflow.engine.binding import Model
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import threads_for
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.write.native import find_library


@contextmanager
def converted(job: ConversionJob, origin: Path | Origin, engine: Path, group_norm_eps: float | None) -> Iterator[Path]:
    """The file of a job, whose path is a name below a folder in out/ that is gone afterwards. Raises WorkerError."""
    Path("out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="out", prefix=".model-") as folder:
        job = replace(job, path=Path(folder) / job.path)
        (outcome,) = convert(origin, engine, [job], group_norm_eps=group_norm_eps)
        if outcome.failure is not None:
            raise WorkerError(outcome.failure)
        yield job.path


@contextmanager
def opened_as(form: str, origin: Path | Origin, engine: Path, group_norm_eps: float | None) -> Iterator[Model]:
    """The model as a file of the format `form`, which is written below out/ and gone afterwards.

    Raises WorkerError where it cannot be made, EngineError where the engine refuses it.
    """
    with (
        converted(ConversionJob(form, form, Path("model")), origin, engine, group_norm_eps) as path,
        Model(path, find_library(engine), threads_for(path.stat().st_size), group_norm_eps) as model,
    ):
        yield model
