"""Smoke: the fp32 reference of each model, then each artifact run by its real consumer and compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base.hashing import file_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import LLAMA
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, LocalInput, Ref, Step
from rwkvflow.stages import convert, engine, fetch, image, llama, mixing
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step
from rwkvflow.worker.formats import FORMATS

if TYPE_CHECKING:
    from rwkvflow.worker.requests import LimitParams, QuestionParams, SmokeJob

SHIPPED_TEXT = PACKAGE / "worker" / "data" / "smoke.txt"


def report(which: Artifact) -> Ref:
    """The smoke report of an artifact, JSON."""
    return Ref(f"smoke/{which.id}", "smoke")


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One reference a model and image, one smoke an artifact."""
    text, consumers = _text(blueprint), image.of_consumers(blueprint)
    seen: set[str] = set()
    for which in blueprint.artifacts:
        reference = f"reference/{which.model}@{which.image}"
        common = _common(blueprint, which)
        if reference not in seen:
            seen.add(reference)
            yield Step(
                id=reference,
                stage="reference",
                action="sandbox",
                command=WORKER_COMMAND,
                params={"task": "reference", "params": common, "job": {}},
                inputs={**_inputs(blueprint, which), "text": text},
                outputs=("reference", "questions"),
                code=blueprint.worker.digest,
                environment=image_step(which.image),
                limits=blueprint.limits("reference"),
            )
        name = f"artifact-{which.format}"
        apart = consumers[which.image] if consumers[which.image] != image_step(which.image) else None
        yield Step(
            id=f"smoke/{which.id}",
            stage="smoke",
            action="sandbox",
            command=WORKER_COMMAND,
            params={
                "task": "smoke",
                "params": {**common, **({"speed": True} if blueprint.recipe.smoke.speed else {})},
                "job": _job(blueprint, which, name),
            },
            inputs={
                **_inputs(blueprint, which),
                "reference": Ref(reference, "reference"),
                "questions": Ref(reference, "questions"),
                "engine": engine.used(blueprint, which.image),
                "librwkv": engine.builtin(which.image),
                **_llama(which),
                name: convert.artifact(which),
                **mixing.inputs(blueprint, which),
                **({"consumers": Ref(apart, "environment")} if apart else {}),
            },
            outputs=("smoke",),
            code=blueprint.worker.digest,
            environment=image_step(which.image),
            consumers=apart,
            limits=blueprint.limits("smoke"),
            batch=f"smoke/{which.model}@{which.image}",
            local={
                "apart": _own_engine(blueprint),
                "compares": FORMATS[which.format].consumer != "librwkv",
                "equal": FORMATS[which.format].may_be_equal,
            },
        )


def _own_engine(blueprint: Blueprint) -> bool:
    engine = blueprint.recipe.engine
    return engine.source != "builtin" or bool(engine.cmake or engine.patches)


def _llama(which: Artifact) -> dict[str, Input]:
    """llama.cpp if the format is tested with it; its sources as well where its own converter does."""
    item = FORMATS[which.format]
    if item.engine != LLAMA:
        return {}
    sources: dict[str, Input] = {"llama-source": llama.SOURCE} if item.needs_torch else {}
    return {"llama": engine.llama_cpp(which.image), **sources}


def _inputs(blueprint: Blueprint, which: Artifact) -> dict[str, Input]:
    return {
        **fetch.origin(blueprint, which.model),
        "environment": environment(which.image),
        **fetch.tokenizer_input(blueprint, which.model),
    }


def _common(blueprint: Blueprint, which: Artifact) -> QuestionParams:
    model, smoke = blueprint.models[which.model], blueprint.recipe.smoke
    return {
        "tokenizer": fetch.tokenizer_kind(blueprint, which.model),
        "group_norm_eps": model.group_norm_eps,
        "prompts": list(smoke.prompts),
        "tokens": smoke.tokens,
        **fetch.origin_params(blueprint, which.model),
    }


def _job(blueprint: Blueprint, which: Artifact, name: str) -> SmokeJob:
    job: SmokeJob = {"format": which.format, "input": name, "limits": _limits(blueprint, which.format)}
    if (given := mixing.mix(blueprint, which.format)) is not None:
        job["mix"] = given
    return job


def _limits(blueprint: Blueprint, name: str) -> LimitParams:
    own = blueprint.recipe.smoke.limits.get(name)
    default = FORMATS[name].limits
    return {
        "logits": own.logits if own and own.logits is not None else default.logits,
        "perplexity": own.perplexity if own and own.perplexity is not None else default.perplexity,
    }


def _text(blueprint: Blueprint) -> LocalInput:
    named = blueprint.recipe.smoke.text
    path: Path = blueprint.folder / named if named else SHIPPED_TEXT
    return LocalInput(file_digest(path), path)
