"""Names that programs for training put around the author's: taken off, whichever file they stand in.

    module.  model.  _forward_module.model.   before every name: a module that holds the model
    _orig_mod.  _fsdp_wrapped_module.         before or inside of names: parts that were compiled, or spread out

What stands beside the model under other names (a loss, a copy of weights) keeps its name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.versions import HARMLESS

#: Parts of names that no model has: what wraps a module calls it so.
WRAPPING: Final = frozenset({"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Every model has one of these: the author's, and those of Hugging Face models.
ANCHORS: Final = ("emb.weight", "model.embeddings.weight", "rwkv.embeddings.weight")
_Value = TypeVar("_Value")


def plain(tensors: Mapping[str, _Value], where: str) -> dict[str, _Value]:
    """The same values under plain names. Raises WorkerError as plain_names does."""
    return {ours: tensors[theirs] for theirs, ours in plain_names(tensors, where).items()}


def plain_names(names: Collection[str], where: str) -> dict[str, str]:
    """The name of each tensor without what was put around it.

    Raises WorkerError that names `where` and two models in one file, or two tensors of one name.
    """
    inner = {name: _unwrapped(name) for name in names}
    prefix = _prefix(inner.values(), where)
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for theirs, name in inner.items():
        ours = name.removeprefix(prefix) or name
        if ours in taken:
            raise WorkerError(f"{where}: two tensors are {ours!a}: {taken[ours]!a} and {theirs!a}")
        taken[ours] = theirs
        found[theirs] = ours
    return found


def _unwrapped(name: str) -> str:
    if "._" not in name and not name.startswith("_"):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPING) or name


def _prefix(names: Collection[str], where: str) -> str:
    """What stands before all names of the model; "" for nothing."""
    ended = [name for name in names if name.endswith(ANCHORS)]
    found = {name.removesuffix(anchor) for name in ended for anchor in ANCHORS if name.endswith(anchor)}
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    if "" in found or not found:
        return ""
    found = {prefix for prefix in found if not HARMLESS.fullmatch(prefix)} or found
    if len(found) > 1:
        shown = " and ".join(ascii(prefix[:100]) for prefix in sorted(found)[:4])
        raise WorkerError(
            f"{where}: it holds several models, whose names begin with {shown}. Save the tensors of one of them"
        )
    return found.pop()
