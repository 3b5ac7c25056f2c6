"""What the tensors are called in files of web-rwkv and Ai00, both ways.

Names and transpositions are those of web-rwkv's converter (cryscan/web-rwkv, crates/web-rwkv-converter): in lower
case, `time_faaaa` as `time_first`, `time_maa` as `time_mix`, `lora_a` and `lora_b` as `lora.0` and `lora.1`; the last
two dims of low-rank matrices and initial states are swapped, once. What 5.0 and 5.1 hold once a head is repeated, so
that a file of theirs cannot be told from one of 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.strangers import refuse_unknown

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

RENAMED: Final = (("time_faaaa", "time_first"), ("time_maa", "time_mix"), ("lora_a", "lora.0"), ("lora_b", "lora.1"))
_SWAPPED: Final = re.compile(r"\.(time_mix_w[12]|time_decay_w[12]|[wavg][12]|time_state|lora\.0)(\.weight)?$")
_PER_HEAD: Final = re.compile(r"\.att\.time_(decay|first)$")


def name_in_file(name: str) -> str:
    """What a tensor of the checkpoint is called in the file."""
    name = name.lower()
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def is_swapped(name: str) -> bool:
    """Whether the last two dims of the tensor of this name in the file are swapped."""
    return _SWAPPED.search(name) is not None


def repeated(name: str, architecture: Architecture) -> int:
    """How often each value of the tensor of this name in the file stands in a row."""
    per_head = architecture.version in ("5.0", "5.1") and _PER_HEAD.search(name)
    return architecture.head_size or 1 if per_head else 1


def author_names(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo] | None:
    """The tensors of a file of web-rwkv by their names in it, with the author's names and shapes.

    None where they make no model in that way, or make one as they are.
    """
    if _is_model(tensors.values()):
        return None
    for renamed in product((False, True), repeat=2):
        pairs = [pair for pair, used in zip(RENAMED, renamed, strict=False) if used]
        found = {name: _author_info(info, pairs) for name, info in tensors.items()}
        if _is_model(found.values()):
            return found
    return None


def _author_info(info: TensorInfo, pairs: list[tuple[str, str]]) -> TensorInfo:
    name, shape = info.name, tuple(info.shape)
    if is_swapped(name) and len(shape) > 1:
        shape = (*shape[:-2], shape[-1], shape[-2])
    for author, ours in pairs:
        name = name.replace(ours, author)
    return replace(info, name=name, shape=shape)


def _is_model(infos: Iterable[TensorInfo]) -> bool:
    tensors = {info.name: info for info in infos}
    with suppress(WorkerError):
        refuse_unknown(tensors, architecture_of(tensors))
        return True
    return False
