"""Convert: one step an artifact, batched so that all formats of a model come from one read of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from rwkvflow.documents.formats import folder_name
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, Ref, Step
from rwkvflow.stages import engine, fetch, imatrix, mixing
from rwkvflow.stages.about import about
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step
from rwkvflow.worker.formats import FORMATS

if TYPE_CHECKING:
    from rwkvflow.worker.requests import ConvertJob, ConvertParams


def artifact(which: Artifact) -> Ref:
    """The converted file."""
    return Ref(f"convert/{which.id}", "artifact")


def _tokenizer(blueprint: Blueprint, which: Artifact) -> dict[str, Input]:
    return fetch.tokenizer_input(blueprint, which.model) if FORMATS[which.format].tokenizer else {}


def _params(blueprint: Blueprint, which: Artifact) -> ConvertParams:
    """What the tensors do not tell of a model, where the recipe does."""
    eps = blueprint.models[which.model].group_norm_eps
    params = cast("ConvertParams", fetch.origin_params(blueprint, which.model))
    if eps is not None:
        params["group_norm_eps"] = eps
    return params


def job_of(blueprint: Blueprint, which: Artifact) -> ConvertJob:
    """What the convert stage is asked for."""
    job: ConvertJob = {"format": which.format}
    if (size := blueprint.recipe.split_of(which.format)) is not None:
        job["split"] = {"size": size, "stem": folder_name(which.model, which.format)[1]}
    if FORMATS[which.format].tells:
        job["about"] = about(blueprint.recipe.card, which.model, blueprint.lock.models[which.model].resolved)
    if imatrix.wanted(blueprint, which):
        job["imatrix"] = imatrix.file_name(which.model)
    if (given := mixing.mix(blueprint, which.format)) is not None:
        job["mix"] = given
    return job


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step an artifact."""
    for which in blueprint.artifacts:
        yield Step(
            id=f"convert/{which.id}",
            stage="convert",
            action="sandbox",
            command=WORKER_COMMAND,
            params={"task": "convert", "params": _params(blueprint, which), "job": job_of(blueprint, which)},
            inputs={
                **fetch.origin(blueprint, which.model),
                "engine": engine.builtin(which.image),
                "environment": environment(which.image),
                **_tokenizer(blueprint, which),
                **mixing.inputs(blueprint, which),
                **imatrix.inputs(blueprint, which),
            },
            outputs=("artifact",),
            code=blueprint.worker.digest,
            environment=image_step(which.image),
            # Where smokes measure speed, nothing else may run.
            limits=blueprint.limits("convert", beside=not blueprint.recipe.smoke.speed),
            batch=f"convert/{which.model}@{which.image}",
        )
