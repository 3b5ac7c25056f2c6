"""Task `convert`: in/checkpoint and in/engine to one artifact for each job, {"params": {"format": name}}.

Beside the checkpoint in/lora, with the parameter lora_alpha, and in/state; see origin.
A job may have {"split": {"size": bytes, "stem": how names of files begin}} beside its format, and {"about": ...}, what
the file says of its model; {"imatrix": name} where it is to be quantized with in/imatrix, and {"mix": ...} where single
tensors have types of their own (see given).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.base import Split
from rwkvflow.worker.formats.gguf.imatrix import Imatrix, read_imatrix
from rwkvflow.worker.model.about import about_of
from rwkvflow.worker.model.origin import origin_of
from rwkvflow.worker.protocol import emit, progress
from rwkvflow.worker.tasks.given import given_mix

if TYPE_CHECKING:
    from rwkvflow.worker.requests import ConvertJob, ConvertRequest

IMATRIX = Path("in/imatrix")


def run(request: ConvertRequest) -> None:
    """Emits an output or a failure for each job. Raises WorkerError when none can be done."""
    weights = read_imatrix(IMATRIX) if IMATRIX.is_file() else None
    jobs = [job_from(job["id"], job["params"], Path(job["outputs"]["artifact"]), weights) for job in request["jobs"]]

    def on_progress(done: int, total: int, label: str) -> None:
        progress(done, total, "B", label)

    origin, eps = origin_of(Path("in"), request["params"]), request["params"].get("group_norm_eps")
    outcomes = convert(origin, Path("in/engine"), jobs, on_progress=on_progress, group_norm_eps=eps)
    for warning in dict.fromkeys(text for outcome in outcomes for text in outcome.warnings):
        print(f"warning: {warning}")
    for outcome in outcomes:
        for warning in outcome.warnings:
            emit(note={"job": outcome.job.id, "key": "warning", "value": warning})
        if outcome.failure is not None:
            emit(failed={"job": outcome.job.id, "message": outcome.failure, "full": outcome.full})
        elif outcome.written is not None:
            written = outcome.written
            emit(
                output={
                    "job": outcome.job.id,
                    "name": "artifact",
                    "sha256": written.sha256,
                    "size": written.size,
                }
            )


def job_from(name: str, params: ConvertJob, path: Path, weights: Imatrix | None) -> ConversionJob:
    """A job of a request, which writes to `path`."""
    split, called = params.get("split"), params.get("imatrix")
    return ConversionJob(
        name,
        params["format"],
        path,
        Split(split["size"], split["stem"]) if split else None,
        replace(weights, name=called) if weights and called else None,
        about_of(params.get("about")),
        given_mix(params["format"], params.get("mix")),
    )
