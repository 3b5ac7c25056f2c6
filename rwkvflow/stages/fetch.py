"""Fetch: checkpoints, tokenizers and engine sources. The only steps but publish that may touch the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rwkvflow.base.errors import LockError
from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import LockedFile, LockedPart, adapters_of, calibration_file, files_beside
from rwkvflow.documents.names import part_of
from rwkvflow.documents.recipe import Git, LocalFolder
from rwkvflow.plan.step import Input, LocalInput, Ref, Step
from rwkvflow.stages.blueprint import Blueprint

if TYPE_CHECKING:
    from rwkvflow.worker.requests import OriginParams

ENGINE_SOURCE = "fetch/engine-source"
BUILTIN_TOKENIZERS = ("auto", "bytes", "world")
SHIPPED_CALIBRATION_TEXT = PACKAGE / "worker" / "data" / "calibration.txt"


def checkpoint(blueprint: Blueprint, model: str, name: str = "checkpoint") -> dict[str, Input]:
    """The checkpoint of a model under a name; of a folder, each of its files below it."""
    files = _locked(blueprint.lock.models, model).files
    if files is None:
        return {name: Ref(f"fetch/{model}", "file")}
    return {f"{name}/{part}": Ref(f"fetch/{model}/{part}", "file") for part in sorted(files)}


def origin(blueprint: Blueprint, model: str) -> dict[str, Input]:
    """All that a model is made of, as worker.origin finds it: the checkpoint, a LoRA, initial states."""
    beside = {kind: Ref(f"fetch/{model}/{kind}", "file") for kind in adapters_of(blueprint.models[model])}
    return {**checkpoint(blueprint, model), **beside}


def origin_params(blueprint: Blueprint, model: str) -> OriginParams:
    """What a task has to know besides."""
    lora, ignore = blueprint.models[model].lora, blueprint.models[model].ignore_tensors
    return {
        **({} if lora is None or lora.alpha is None else {"lora_alpha": lora.alpha}),
        **({"ignore_tensors": list(ignore)} if ignore else {}),
    }


def tokenizer_kind(blueprint: Blueprint, model: str) -> str:
    """How tasks open a model's tokenizer: see worker/model/tokenizers."""
    named = blueprint.models[model].tokenizer
    return named if named in BUILTIN_TOKENIZERS else "tokenizer.json"


def tokenizer(blueprint: Blueprint, model: str) -> Ref | None:
    """The tokenizer.json of a model, where it has one of its own."""
    named = blueprint.models[model].tokenizer
    return None if named in BUILTIN_TOKENIZERS else Ref(f"fetch/{model}/tokenizer", "file")


def tokenizer_input(blueprint: Blueprint, model: str) -> dict[str, Input]:
    """The same as an input of a step: in/tokenizer; nothing where there is none."""
    own = tokenizer(blueprint, model)
    return {"tokenizer": own} if own else {}


def calibration(blueprint: Blueprint, model: str) -> Input:
    """The text that a model's importance matrix is computed over."""
    if calibration_file(blueprint.models[model]) is None:
        return LocalInput(file_digest(SHIPPED_CALIBRATION_TEXT), SHIPPED_CALIBRATION_TEXT)
    return Ref(f"fetch/{model}/text", "file")


def engine_source(blueprint: Blueprint) -> Input:
    """The sources of the recipe's engine."""
    source = blueprint.recipe.engine.source
    if isinstance(source, Git):
        return Ref(ENGINE_SOURCE, "folder")
    if isinstance(source, LocalFolder):
        path = (blueprint.folder / source.path).resolve()
        return LocalInput(tree_digest(path), path)
    return blueprint.builtin_engine


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step a file, and one for the engine's git repository."""
    for model in blueprint.models:
        yield from _checkpoint(blueprint, model)
        for kind in adapters_of(blueprint.models[model]):
            locked = _locked(files_beside(blueprint.lock)[kind], model)
            yield _file(blueprint, f"fetch/{model}/{kind}", locked.resolved, locked)
        if tokenizer(blueprint, model):
            locked = _locked(blueprint.lock.tokenizers, model)
            yield _file(blueprint, f"fetch/{model}/tokenizer", locked.resolved, locked)
        if calibration_file(blueprint.models[model]) is not None:
            locked = _locked(blueprint.lock.texts or {}, model)
            yield _file(blueprint, f"fetch/{model}/text", locked.resolved, locked)
    source = blueprint.recipe.engine.source
    if isinstance(source, Git):
        url, _, commit = blueprint.lock.engine.resolved.rpartition("@")
        yield Step(
            id=ENGINE_SOURCE,
            stage="fetch",
            action="git",
            params={"commit": commit, "submodules": _submodules(source)},
            inputs={},
            outputs=("folder",),
            limits=blueprint.limits("fetch", cores=0),
            local={"url": url, "folder": str(blueprint.folder)},
        )


def _submodules(source: Git) -> bool | list[str]:
    return source.submodules if isinstance(source.submodules, bool) else sorted(set(source.submodules))


def _locked(entries: Mapping[str, LockedFile], model: str) -> LockedFile:
    try:
        return entries[model]
    except KeyError as error:
        raise LockError(f"the lock does not know the files of {model}", remedy="run `rwkvflow lock`") from error


def _checkpoint(blueprint: Blueprint, model: str) -> Iterator[Step]:
    locked = _locked(blueprint.lock.models, model)
    if locked.files is None:
        yield _file(blueprint, f"fetch/{model}", locked.resolved, locked)
    for part, pin in sorted((locked.files or {}).items()):
        yield _file(blueprint, f"fetch/{model}/{part}", part_of(locked.resolved, part), pin)


def _file(blueprint: Blueprint, name: str, resolved: str, locked: LockedFile | LockedPart) -> Step:
    return Step(
        id=name,
        stage="fetch",
        action="fetch",
        params={"sha256": locked.sha256, "size": locked.size},  # where it comes from does not matter
        inputs={},
        outputs=("file",),
        limits=blueprint.limits("fetch", cores=0),
        local={"resolved": resolved, "folder": str(blueprint.folder)},
    )
