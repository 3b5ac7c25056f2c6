"""Quality: artifacts that librwkv runs, over texts of several domains, where the recipe says `quality: full`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rwkvflow.documents.formats import runs_in_librwkv
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Ref, Step
from rwkvflow.stages import convert, engine, fetch
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step

if TYPE_CHECKING:
    from rwkvflow.worker.requests import QualityJob, QualityParams


def wanted(blueprint: Blueprint, which: Artifact) -> bool:
    """Whether an artifact is measured: by librwkv, which others are too slow to replace; of one file."""
    recipe = blueprint.recipe
    one = recipe.split_of(which.format) is None
    return recipe.smoke.quality == "full" and one and runs_in_librwkv(which.format)


def report(which: Artifact) -> Ref:
    """The quality report of an artifact, JSON."""
    return Ref(f"quality/{which.id}", "quality")


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step an artifact; all of a model are measured by one command."""
    for which in blueprint.artifacts:
        if not wanted(blueprint, which):
            continue
        name = f"artifact-{which.format}"
        yield Step(
            id=f"quality/{which.id}",
            stage="quality",
            action="sandbox",
            command=WORKER_COMMAND,
            params={"task": "quality", "params": _params(blueprint, which), "job": _job(blueprint, which, name)},
            inputs={
                **fetch.origin(blueprint, which.model),
                "engine": engine.builtin(which.image),
                "environment": environment(which.image),
                **fetch.tokenizer_input(blueprint, which.model),
                name: convert.artifact(which),
            },
            outputs=("quality",),
            code=blueprint.worker.digest,
            environment=image_step(which.image),
            limits=blueprint.limits("quality"),
            batch=f"quality/{which.model}@{which.image}",
        )


def _params(blueprint: Blueprint, which: Artifact) -> QualityParams:
    return {
        **fetch.origin_params(blueprint, which.model),
        "tokenizer": fetch.tokenizer_kind(blueprint, which.model),
        "group_norm_eps": blueprint.models[which.model].group_norm_eps,
        "tokens": blueprint.recipe.smoke.quality_tokens,
    }


def _job(blueprint: Blueprint, which: Artifact, name: str) -> QualityJob:
    job: QualityJob = {"format": which.format, "input": name}
    own = blueprint.recipe.smoke.limits.get(which.format)
    if own is not None and own.domains:
        job["limits"] = {str(key): item.model_dump(exclude_none=True) for key, item in own.domains.items()}
    return job
