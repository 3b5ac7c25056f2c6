"""The exact size of each artifact, before anything is made: it follows from names and shapes, and from the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.app.pipeline import Prepared
from rwkvflow.lock.local_files import local_path
from rwkvflow.plan.matrix import Artifact
from rwkvflow.stages import convert, fetch, imatrix
from rwkvflow.worker.conversion.jobs import format_of
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.imatrix import Imatrix
from rwkvflow.worker.formats.gguf.layout import Gguf
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.strangers import ignored
from rwkvflow.worker.model.tensorinfo import ModelTensors, TensorInfo
from rwkvflow.worker.tasks.convert import job_from

if TYPE_CHECKING:
    from collections.abc import Mapping


def sizes(prepared: Prepared, *, ask: bool = True) -> dict[str, int]:
    """Bytes of each artifact by its id; those are left out whose checkpoint is not known yet, or cannot be held.

    A checkpoint that is neither here nor in the store is asked for its header, in ranges, where `ask`.
    """
    tensors = {model: _tensors(prepared, model, ask) for model in prepared.blueprint.models}
    found = {}
    for which in prepared.blueprint.artifacts:
        known = tensors[which.model]
        if known is not None and (size := _size(prepared, which, known)) is not None:
            found[which.id] = size
    return found


def _size(prepared: Prepared, which: Artifact, tensors: Mapping[str, TensorInfo]) -> int | None:
    blueprint = prepared.blueprint
    job = convert.job_of(blueprint, which)
    if (job.get("mix") or {}).get("searched"):
        return None  # its types are searched for first
    source = _file(prepared, blueprint.lock.models[which.model])
    item = format_of(job_from(which.id, job, Path(), _weights(prepared, which)), source)
    own = fetch.tokenizer(blueprint, which.model)
    if item is None:
        return None
    if own is not None and item.tokenizer:
        named = _file(prepared, blueprint.lock.tokenizers[which.model])
        if named is None or not isinstance(item, Gguf):
            return None  # the tokenizer is part of it
        item = replace(item, named=named)
    try:
        architecture = architecture_of(tensors, blueprint.models[which.model].group_norm_eps)
        if item.refuse(architecture) is not None:
            return None
        return item.expected_size(architecture, item.held(architecture, tensors))
    except WorkerError:
        return None  # the stage that reads it says what is wrong with it


def _weights(prepared: Prepared, which: Artifact) -> Imatrix | None:
    """An importance matrix as far as a file's size depends on it: what it is called, and its text."""
    if not imatrix.wanted(prepared.blueprint, which):
        return None
    return Imatrix("", {}, {}, (imatrix.text_name(prepared.blueprint, which.model),), 0, 0)


def _file(prepared: Prepared, locked: object) -> Path | None:
    """A locked file, where it is on this machine."""
    resolved, sha256 = str(getattr(locked, "resolved", "")), getattr(locked, "sha256", "")
    here = local_path(resolved, prepared.blueprint.folder)
    return here if here is not None and here.exists() else prepared.store.path(f"sha256:{sha256}")


def _tensors(prepared: Prepared, model: str, ask: bool) -> Mapping[str, TensorInfo] | None:
    """What a model is made of, without its values; None where it is not known yet."""
    from rwkvflow.lock.header import tensors_of_source
    from rwkvflow.worker.read.open import open_checkpoint

    locked, asked = prepared.blueprint.lock.models[model], prepared.blueprint.models[model]
    path = _file(prepared, locked)
    found: dict[str, TensorInfo] | None = None
    try:
        if path is not None:
            with open_checkpoint(Origin(path, ignore=asked.ignore_tensors)) as checkpoint:
                found = ModelTensors(checkpoint.tensors, checkpoint.said)
        elif ask and locked.files is None and (found := tensors_of_source(locked.resolved)) is not None:
            for name in ignored(found, asked.ignore_tensors):
                del found[name]
        if found is not None:
            found.update(_states(prepared, model))
        return found
    except (WorkerError, OSError):
        return None


def _states(prepared: Prepared, model: str) -> dict[str, TensorInfo]:
    """Initial states that go along. Raises WorkerError where they are not here yet."""
    from rwkvflow.worker.model.architecture import is_state
    from rwkvflow.worker.read.checkpoint import Checkpoint

    locked = (prepared.blueprint.lock.states or {}).get(model)
    if locked is None:
        return {}
    path = _file(prepared, locked)
    if path is None:
        raise WorkerError("not fetched yet")
    with Checkpoint(path) as states:
        return {name: info for name, info in states.tensors.items() if is_state(name)}
