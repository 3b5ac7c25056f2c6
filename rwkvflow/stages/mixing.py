"""Mixing: what each matrix loses alone in each type, and the best types within a recipe's target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from rwkvflow.documents.lock import calibration_file
from rwkvflow.documents.yaml.units import split_bytes
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, Ref, Step
from rwkvflow.stages import engine, fetch, imatrix
from rwkvflow.stages.about import about
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step
from rwkvflow.worker.formats.mix import PLAIN

if TYPE_CHECKING:
    from rwkvflow.documents.parts import TypesTarget
    from rwkvflow.worker.requests import AssignParams, MeasureParams, MixParams


def types(which: Artifact) -> Ref:
    """The types that were found for an artifact, JSON."""
    return Ref(f"assign/{which.id}", "types")


def target_of(blueprint: Blueprint, name: str) -> TypesTarget | None:
    """What the recipe wants a format to come to; None where it says nothing."""
    entry = blueprint.recipe.entry_of(name)
    return None if entry is None else entry.target


def inputs(blueprint: Blueprint, which: Artifact) -> dict[str, Input]:
    """The types, as tasks find them (see worker/tasks/given)."""
    return {f"types/{which.format}": types(which)} if target_of(blueprint, which.format) else {}


def mix(blueprint: Blueprint, name: str) -> MixParams | None:
    """The types that the recipe gives single tensors of a format; None where it gives none."""
    entry = blueprint.recipe.entry_of(name)
    if entry is None:
        return None
    given: MixParams = {}
    if entry.tensor_types:
        given["tensor_types"] = list(entry.tensor_types.items())
    if entry.output_type is not None:
        given["output_type"] = entry.output_type
    if entry.embedding_type is not None:
        given["embedding_type"] = entry.embedding_type
    if entry.target is not None:
        given["searched"] = True
    return given or None


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """A step a model, type and number of tokens, and one an artifact."""
    seen: set[str] = set()
    for which in blueprint.artifacts:
        target = target_of(blueprint, which.format)
        if target is None:
            continue
        losses: dict[str, Input] = {}
        for kind in target.types:
            if kind != PLAIN:
                step = _measure(blueprint, which, kind, target.tokens)
                losses[f"losses/{kind}"] = Ref(step.id, "losses")
                if step.id not in seen:
                    seen.add(step.id)
                    yield step
        yield Step(
            id=types(which).step,
            stage="measure",
            action="sandbox",
            command=WORKER_COMMAND,
            params={"task": "assign", "params": _assign(blueprint, which, target), "job": {}},
            inputs={
                **fetch.origin(blueprint, which.model),
                "environment": environment(which.image),
                **fetch.tokenizer_input(blueprint, which.model),
                **imatrix.inputs(blueprint, which),
                **losses,
            },
            outputs=("types",),
            code=blueprint.worker.digest,
            environment=image_step(which.image),
            limits=blueprint.limits("measure"),
        )


def _measure(blueprint: Blueprint, which: Artifact, kind: str, tokens: int) -> Step:
    return Step(
        id=f"measure/{which.model}/{kind}-{tokens}@{which.image}",
        stage="measure",
        action="sandbox",
        command=WORKER_COMMAND,
        params={"task": "measure", "params": _params(blueprint, which, kind, tokens), "job": {}},
        inputs={
            **fetch.origin(blueprint, which.model),
            **_text(blueprint, which.model),
            "engine": engine.builtin(which.image),
            "environment": environment(which.image),
            **fetch.tokenizer_input(blueprint, which.model),
            **imatrix.inputs(blueprint, which),
        },
        outputs=("losses",),
        code=blueprint.worker.digest,
        environment=image_step(which.image),
        limits=blueprint.limits("measure"),
    )


def _text(blueprint: Blueprint, model: str) -> dict[str, Input]:
    """The recipe's own calibration text; without one, the task reads the texts of the domains, which are its own."""
    own = calibration_file(blueprint.models[model]) is not None
    return {"text": fetch.calibration(blueprint, model)} if own else {}


def _params(blueprint: Blueprint, which: Artifact, kind: str, tokens: int) -> MeasureParams:
    return {
        **fetch.origin_params(blueprint, which.model),
        "tokenizer": fetch.tokenizer_kind(blueprint, which.model),
        "group_norm_eps": blueprint.models[which.model].group_norm_eps,
        "tokens": tokens,
        "kind": kind,
    }


def _assign(blueprint: Blueprint, which: Artifact, target: TypesTarget) -> AssignParams:
    given = mix(blueprint, which.format) or {}
    given.pop("searched", None)
    wanted = {"bits_per_weight": target.bits_per_weight, "kl": target.kl}
    size = None if target.size is None else float(split_bytes(target.size))
    params = {
        **fetch.origin_params(blueprint, which.model),
        "group_norm_eps": blueprint.models[which.model].group_norm_eps,
        "format": which.format,
        "target": {key: value for key, value in {**wanted, "size": size}.items() if value is not None},
        "kinds": list(target.types),
        "tokens": target.tokens,
        "about": about(blueprint.recipe.card, which.model, blueprint.lock.models[which.model].resolved),
        **given,
    }
    if imatrix.wanted(blueprint, which):
        params["imatrix"] = imatrix.file_name(which.model)
    return cast("AssignParams", params)
