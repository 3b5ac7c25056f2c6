"""Extra: the user's own commands in the image, for each artifact or each model."""

from __future__ import annotations

from collections.abc import Iterator

from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.documents.workflow import ExtraStage
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, LocalInput, Ref, Step
from rwkvflow.stages import convert, engine, fetch, image, smoke
from rwkvflow.stages.blueprint import Blueprint, limits_of


def step_id(stage: ExtraStage, which: Artifact) -> str:
    """extra/<stage>/<artifact>, or extra/<stage>/<model>@<image>."""
    subject = which.id if stage.each == "artifact" else f"{which.model}@{which.image}"
    return f"extra/{stage.name}/{subject}"


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step a stage and artifact (or model and image)."""
    consumers = image.of_consumers(blueprint)
    for stage in blueprint.workflow.extra:
        seen: set[str] = set()
        for which in blueprint.artifacts:
            name = step_id(stage, which)
            if name in seen:
                continue
            seen.add(name)
            fellows = [which]
            if stage.each == "model":
                fellows = [a for a in blueprint.artifacts if (a.model, a.image) == (which.model, which.image)]
            stage_of = "smoke" if stage.needs == "smoke" else "convert"
            yield Step(
                id=name,
                stage="extra",
                action="sandbox",
                command=stage.command,
                params={},
                inputs={
                    **{
                        name: found
                        for key, what in stage.inputs.items()
                        for name, found in _input(blueprint, key, what, which).items()
                    },
                    "environment": Ref(consumers[which.image], "environment"),
                },
                outputs=stage.outputs,
                environment=consumers[which.image],
                limits=limits_of(stage),
                after=tuple(f"{stage_of}/{fellow.id}" for fellow in fellows),
            )


def _input(blueprint: Blueprint, key: str, what: str, which: Artifact) -> dict[str, Input]:
    if what == "checkpoint":
        return fetch.checkpoint(blueprint, which.model, key)
    named: dict[str, Ref] = {
        "artifact": convert.artifact(which),
        "engine": engine.used(blueprint, which.image),
        "smoke": smoke.report(which),
    }
    if what in named:
        return {key: named[what]}
    path = (blueprint.workflow_path.parent / what).resolve()
    return {key: LocalInput(tree_digest(path) if path.is_dir() else file_digest(path), path)}
