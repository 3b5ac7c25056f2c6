"""Fetch: checkpoints, tokenizers and engine sources. The only steps but publish that may touch the network."""

from __future__ import annotations

from collections.abc import Iterator

from rwkvflow.documents.lock import LockedFile
from rwkvflow.documents.recipe import Git, LocalFolder
from rwkvflow.errors import LockError
from rwkvflow.hashing import tree_digest
from rwkvflow.plan.step import Input, Ref, Source, Step
from rwkvflow.stages.common import Blueprint

ENGINE_SOURCE = "fetch/engine-source"
BUILTIN_TOKENIZERS = ("auto", "bytes", "world")


def checkpoint(model: str) -> Ref:
    """The checkpoint of a model."""
    return Ref(f"fetch/{model}", "file")


def tokenizer(blueprint: Blueprint, model: str) -> Ref | None:
    """The tokenizer.json of a model, where it has one of its own."""
    named = blueprint.models[model].tokenizer
    return None if named in BUILTIN_TOKENIZERS else Ref(f"fetch/{model}/tokenizer", "file")


def engine_source(blueprint: Blueprint) -> Input:
    """The sources of the recipe's engine."""
    source = blueprint.recipe.engine.source
    if isinstance(source, Git):
        return Ref(ENGINE_SOURCE, "folder")
    if isinstance(source, LocalFolder):
        path = (blueprint.folder / source.path).resolve()
        return Source(tree_digest(path), path)
    return blueprint.builtin_engine


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step a file, and one for the engine's git repository."""
    for model in blueprint.models:
        yield _file(blueprint, f"fetch/{model}", _locked(blueprint.lock.models, model))
        if tokenizer(blueprint, model):
            yield _file(blueprint, f"fetch/{model}/tokenizer", _locked(blueprint.lock.tokenizers, model))
    source = blueprint.recipe.engine.source
    if isinstance(source, Git):
        url, _, commit = blueprint.lock.engine.resolved.rpartition("@")
        yield Step(
            id=ENGINE_SOURCE,
            stage="fetch",
            action="git",
            params={"commit": commit, "submodules": source.submodules},
            inputs={},
            outputs=("folder",),
            limits=blueprint.limits("fetch", cores=0),
            local={"url": url, "folder": str(blueprint.folder)},
        )


def _locked(entries: dict[str, LockedFile], model: str) -> LockedFile:
    try:
        return entries[model]
    except KeyError as error:
        raise LockError(f"the lock does not know the files of {model}", remedy="run `rwkvflow lock`") from error


def _file(blueprint: Blueprint, name: str, locked: LockedFile) -> Step:
    return Step(
        id=name,
        stage="fetch",
        action="fetch",
        params={"sha256": locked.sha256, "size": locked.size},  # where it comes from does not matter
        inputs={},
        outputs=("file",),
        limits=blueprint.limits("fetch", cores=0),
        local={"resolved": locked.resolved, "folder": str(blueprint.folder)},
    )
