"""Which tensors a GGUF has, of what shape, and what of a model each is made of; and what stands in its list of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.pairs import gguf_text
from rwkvflow.worker.maps.gguf import BLOCK, FUSED, GLOBAL, TRANSPOSED
from rwkvflow.worker.model.versions import RESCALE_EVERY, RESCALED
from rwkvflow.worker.model.weight_types import BY_NUMBER
from rwkvflow.worker.write.layout import Transform
from rwkvflow.worker.write.transforms import SHIFT_FIRST, SHIFT_SECOND, TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

ALIGNMENT = 32
LONGEST_NAME = 63  # bytes of a tensor's name that ggml keeps
#: Of these versions layer 0 mixes in no values of a layer before it, but llama.cpp wants the tensors.
FIRST_VALUES = ("7", "arwkv7")
_SHIFTS = {"att.time_maa_w1": SHIFT_FIRST, "att.time_maa_w2": SHIFT_SECOND}  # of rwkv6qwen2


@dataclass(frozen=True)
class GgufSlot:
    """A tensor of the file: its sources, one after another, are its values."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]  # PyTorch's order
    transform: Transform | None = None


def padded(size: int) -> int:
    """So many bytes, and those up to where the next tensor begins."""
    return size + -size % ALIGNMENT


def sources_of(plan: list[GgufSlot]) -> set[str]:
    """The model's tensors that go into the file."""
    return {source for tensor in plan for source in tensor.sources}


def planned(architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> list[GgufSlot]:
    """The tensors of the file, in the checkpoint's order; what llama.cpp does not know is not among them."""
    version, out = architecture.version, []
    fused: set[str] = set()
    for name, info in tensors.items():
        if name in GLOBAL:
            out.append(GgufSlot(GLOBAL[name], (name,), _squeezed(info.shape, GLOBAL[name])))
            continue
        layer, part = _split(name)
        if layer is None:
            continue
        if part in FUSED[version]:
            if layer not in fused:
                fused.add(layer)
                sources = tuple(one for x in FUSED[version] if (one := f"blocks.{layer}.{x}") in tensors)
                shape = (len(sources), 1, 1, architecture.n_embd)
                out.append(GgufSlot(f"blk.{layer}.time_mix_lerp_fused.weight", sources, shape))
        elif part in BLOCK[version] and not (
            version in FIRST_VALUES and layer == "0" and part in ("att.v0", "att.v1", "att.v2")
        ):
            tensor = _single(architecture, layer, part, info)
            out.append(tensor)
            if version in FIRST_VALUES and layer == "0" and part in ("att.a0", "att.a1", "att.a2"):
                name = tensor.name.replace("time_mix_a", "time_mix_v")
                out.append(GgufSlot(name, tensor.sources, tensor.shape, tensor.transform))
    return out


def _split(name: str) -> tuple[str | None, str]:
    """Layer and the rest of a block's tensor name; None for the layer of any other."""
    parts = name.split(".", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "blocks" else (None, name)


def _single(architecture: Architecture, layer: str, part: str, info: TensorInfo) -> GgufSlot:
    version = architecture.version
    name, source, shape = f"blk.{layer}.{BLOCK[version][part]}", info.name, tuple(info.shape)
    if part in TRANSPOSED:
        if len(shape) < 2:
            raise WorkerError(f"{source} should be a matrix, and is of shape {list(shape)}")
        change = _SHIFTS.get(part, TRANSPOSE) if version == "rwkv6qwen2" else TRANSPOSE
        return GgufSlot(name, (source,), (*shape[:-2], shape[-1], shape[-2]), change)
    if part == "att.r_k" or (version == "rwkv6qwen2" and part == "att.time_decay"):
        return GgufSlot(name, (source,), (math.prod(shape),))
    if part == "att.time_faaaa":
        return GgufSlot(name, (source,), (architecture.n_head or 1, architecture.head_size or 1))
    if version == "6" and part in RESCALED and (halvings := int(layer) // RESCALE_EVERY):
        return GgufSlot(name, (source,), shape, _halved(halvings))
    return GgufSlot(name, (source,), _squeezed(shape, name))


def _squeezed(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Vectors lose dimensions of size 1; matrices of one row are still matrices."""
    vector = name.endswith(".bias") or "_norm" in name or "_mix_" in name
    flat = tuple(size for size in shape if size != 1)
    return (math.prod(shape),) if vector and len(flat) <= 1 else shape


@cache
def _halved(times: int) -> Transform:
    factor = 0.5**times
    return Transform(f"divided by 2^{times}", lambda a: a * a.dtype.type(factor), arithmetic=True, elementwise=True)


def tensor_info(tensor: GgufSlot, kind: int, offset: int) -> bytes:
    """What the list of tensors says of one. Raises WorkerError for what ggml has no place for."""
    name = tensor.name.encode()
    if len(name) > LONGEST_NAME or len(tensor.shape) > 4:
        raise WorkerError(f"a GGUF cannot hold {tensor.name} of shape {list(tensor.shape)}")
    dims = tuple(reversed(tensor.shape))
    return gguf_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, BY_NUMBER[kind].gguf, offset)
