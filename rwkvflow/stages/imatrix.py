"""Imatrix: the importance matrix of a model, which its gguf-* files are quantized with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rwkvflow.documents.lock import calibration_file
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, Ref, Step
from rwkvflow.stages import engine, fetch
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step
from rwkvflow.worker.formats import FORMATS

if TYPE_CHECKING:
    from rwkvflow.documents.recipe import Calibration
    from rwkvflow.worker.requests import ImatrixParams


def wanted(blueprint: Blueprint, which: Artifact) -> bool:
    """Whether an artifact is quantized with one."""
    return blueprint.models[which.model].imatrix is not None and FORMATS[which.format].weighs


def of(which: Artifact) -> Ref:
    """The matrix that an artifact is quantized with."""
    return Ref(f"imatrix/{which.model}@{which.image}", "imatrix")


def inputs(blueprint: Blueprint, which: Artifact) -> dict[str, Input]:
    """The same as an input of a step: in/imatrix; nothing for an artifact that is made without one."""
    return {"imatrix": of(which)} if wanted(blueprint, which) else {}


def file_name(model: str) -> str:
    """What the matrix of a model is called, in the metadata of its files and in a release."""
    return f"{model}-imatrix.gguf"


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step a model and image that has an artifact which is quantized with it."""
    seen: set[str] = set()
    for which in blueprint.artifacts:
        asked = blueprint.models[which.model].imatrix
        if asked is None or not wanted(blueprint, which) or of(which).step in seen:
            continue
        seen.add(of(which).step)
        yield Step(
            id=of(which).step,
            stage="imatrix",
            action="sandbox",
            command=WORKER_COMMAND,
            params={"task": "imatrix", "params": _params(blueprint, which, asked), "job": {}},
            inputs={
                **fetch.origin(blueprint, which.model),
                "text": fetch.calibration(blueprint, which.model),
                "engine": engine.builtin(which.image),
                "environment": environment(which.image),
                **fetch.tokenizer_input(blueprint, which.model),
            },
            outputs=("imatrix",),
            code=blueprint.worker.digest,
            environment=image_step(which.image),
            limits=blueprint.limits("imatrix"),
        )


def text_name(blueprint: Blueprint, model: str) -> str:
    """What the text is called: nothing of the folder that it lies in."""
    own = calibration_file(blueprint.models[model])
    return fetch.SHIPPED_CALIBRATION_TEXT.name if own is None else PurePosixPath(own).name


def _params(blueprint: Blueprint, which: Artifact, asked: Calibration) -> ImatrixParams:
    return {
        **fetch.origin_params(blueprint, which.model),
        "tokenizer": fetch.tokenizer_kind(blueprint, which.model),
        "group_norm_eps": blueprint.models[which.model].group_norm_eps,
        "text": text_name(blueprint, which.model),
        "chunks": asked.chunks,
        "chunk_size": asked.chunk_size,
    }
