"""rwkv.cpp's `.bin`: a header of six int32, then each tensor with its own small header, nothing padded.

Layout and transforms are those of rwkv.cpp's converter and quantizer (docs/FILE_FORMAT.md there), and so are the bytes.
The K types have rwkv.cpp's numbers and the bytes of ggml's reference encoders. Rows that 256 does not divide get what
llama.cpp takes in their place (src/llama-quant.cpp): Q5_0, Q5_1 and Q8_0 for Q4_K, Q5_K and Q6_K.

    header   int32 magic 0x67676d66, version 101, n_vocab, n_embd, n_layer, data type of the file
    tensor   int32 number of dims, length of the name, data type; int32 dims, last of PyTorch's first; name; data
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import FileFormat, Limits
from rwkvflow.worker.maps.ggml import RULES, joined_in, rule_of
from rwkvflow.worker.model.weight_types import (
    BLOCKS,
    BY_NAME,
    BY_NUMBER,
    F16,
    F32,
    NARROWER,
    QUANTIZED,
)
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Transform
from rwkvflow.worker.write.transforms import TRANSPOSE, transform_of

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

MAGIC = 0x67676D66
VERSION = 101
LARGEST_INT32 = 2**31 - 1
MOST_DIMS = 3  # in rwkv.cpp
MAX_KEY = 256  # bytes; as librwkv reads it
OLD_BLOCK = 32  # weights of the largest block that rwkv.cpp had before 2025

ALWAYS_F32 = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
NEVER_QUANTIZED = (*(f"att.{x}{n}" for x in "vgaw" for n in "12"), "att.r_k")
UNUSED = tuple(f"blocks.0.att.v{n}" for n in "012")  # version 7: layer 0 makes the value that others mix in


@dataclass(frozen=True)
class _GgmlTensor:
    """A tensor of the file: its sources, one after another, are its values."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]  # PyTorch's order
    transform: Transform | None = None


@dataclass(frozen=True)
class Ggml(FileFormat):
    """One of rwkv.cpp's data types. `from_f16`: quantized from what the F16 file holds, else from F32."""

    kind: int = F32
    from_f16: bool = False

    @property
    def label(self) -> str:
        """See Format."""
        return self.name.removeprefix(f"{self.family}-")

    @property
    def has_large_blocks(self) -> bool:
        """Whether the type is one of ggml's super-blocks, which rwkv.cpp's older builds do not know."""
        return BY_NUMBER[self.kind].values > OLD_BLOCK

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold the model; None if it can.

        A file tells the number of heads by a dimension, which rwkv.cpp squeezes away where it is 1.
        """
        if refused := super().refuse(architecture):
            return refused
        if architecture.version in ("5.2", "6") and architecture.n_head == 1:
            return f"{self.name} cannot hold a version {architecture.version} model with a single head"
        return None

    def held(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """See Format. rwkv.cpp ends the process over a version 7 layer 0 with v0, v1 and v2, which nothing uses."""
        held = super().held(architecture, tensors)
        if architecture.version != "7":
            return held
        return {name: info for name, info in held.items() if name not in UNUSED}

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        build = LayoutBuilder()
        header = (MAGIC, VERSION, architecture.n_vocab, architecture.n_embd, architecture.n_layer, self.kind)
        build.literal(struct.pack("<6i", *header))
        narrowed: dict[tuple[int, int], list[str]] = {}
        for tensor in _plan(architecture, tensors):
            kind = self._kind(tensor, build)
            if kind not in (self.kind, F32, F16):
                narrowed.setdefault((kind, tensor.shape[-1]), []).append(tensor.name)
            key = tensor.name.encode()
            if not 1 <= len(tensor.shape) <= MOST_DIMS or not all(0 < dim <= LARGEST_INT32 for dim in tensor.shape):
                raise WorkerError(
                    f"{self.name} cannot hold {tensor.name[:100]} of shape {list(tensor.shape)}: one has 1 to "
                    f"{MOST_DIMS} dimensions, and values"
                )
            if len(key) > MAX_KEY:
                raise WorkerError(f"{self.name} cannot hold {tensor.name[:60]}…: a name of {len(key)} bytes")
            dims = tuple(reversed(tensor.shape))
            build.literal(struct.pack(f"<{3 + len(dims)}i", len(dims), len(key), kind, *dims) + key)
            via_f16 = self.from_f16 and kind not in (F32, F16) and _f16_in_f16_file(tensor)
            for source in tensor.sources:
                count = math.prod(tensor.shape) // len(tensor.sources)
                build.slot(source, count, Encoding(kind, via_f16, tensor.transform))
        for (kind, cols), names in narrowed.items():
            which = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            block = BLOCKS[self.kind][0]
            instead = BY_NUMBER[kind].name.upper()
            build.remark(f"{self.name}: {instead} instead for {which}: rows of {cols}, not a multiple of {block}")
        return build.done()

    def _kind(self, tensor: _GgmlTensor, build: LayoutBuilder) -> int:
        """The data type of a tensor in this file."""
        unquantized = F16 if self.from_f16 and _f16_in_f16_file(tensor) else F32
        if self.kind in (F32, F16) or not _quantizable(tensor):
            return unquantized
        cols = tensor.shape[-1]
        for kind in (self.kind, NARROWER.get(self.kind, self.kind)):
            block = BLOCKS[kind][0]
            if cols % block == 0:
                return kind
        if cols > 1:  # a last dim of 1 is rwkv.cpp's own, on per-head values that nobody would expect quantized
            build.remark(f"{self.name}: {tensor.name} stays unquantized: rows of {cols}, not a multiple of {block}")
        return unquantized


def _f16_in_f16_file(tensor: _GgmlTensor) -> bool:
    return len(tensor.shape) > 1 and not any(part in tensor.name for part in ALWAYS_F32)


def _quantizable(tensor: _GgmlTensor) -> bool:
    if len(tensor.shape) != 2 or tensor.name in ("emb.weight", "head.weight"):
        return False
    return not any(part in tensor.name for part in NEVER_QUANTIZED)


def _plan(architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> list[_GgmlTensor]:
    """The tensors of the file, in its order."""
    out: list[_GgmlTensor] = []
    joined: set[str] = set()
    parts, whole = joined_in(architecture.version)
    for name, info in tensors.items():
        stem = next((name[: -len(part)] for part in parts if name.endswith("." + part)), None)
        if stem is None:
            out.append(_single(architecture, name, tuple(info.shape)))
        elif stem not in joined:
            joined.add(stem)
            out.append(_join(stem, parts, whole, tensors))
    return out


def _join(stem: str, parts: tuple[str, ...], whole: str, tensors: Mapping[str, TensorInfo]) -> _GgmlTensor:
    sources = tuple(stem + part for part in parts)
    missing = [name for name in sources if name not in tensors]
    if missing:
        raise WorkerError(f"the checkpoint has no {missing[0]}, and rwkv.cpp's file needs all six att.x_*")
    shape = tuple(tensors[sources[0]].shape)
    odd = next((name for name in sources if tuple(tensors[name].shape) != shape), None)
    if odd or not shape:
        raise WorkerError(f"{odd or sources[0]}: all six att.x_* of a layer should have one shape, [1, 1, n_embd]")
    return _GgmlTensor(stem + whole, sources, (shape[0] * len(sources), *shape[1:]))


def _single(architecture: Architecture, name: str, shape: tuple[int, ...]) -> _GgmlTensor:
    rule = rule_of(architecture.version, name)
    try:
        there = rule.there(shape, architecture.n_head or 0)
    except ValueError as error:
        raise WorkerError(f"{name} {error}") from None
    transform = None if rule.change is None else transform_of(rule.change)
    if rule.swapped:
        transform = TRANSPOSE
    return _GgmlTensor(name, (name,), there, transform)


# What each type may lose. Rounding is relative to the size of weights: about 2^-12 in F16, 2^-8 in Q8_0, 2^-5 and 2^-4
# in the others, and adds up over the layers.
LIMITS = {
    "f32": Limits(logits=1e-4, perplexity=1e-4),
    "f16": Limits(logits=0.02, perplexity=0.002),
    "q8_0": Limits(logits=0.2, perplexity=0.01),
    "q6_k": Limits(logits=0.4, perplexity=0.02),
    "q5_k": Limits(logits=0.8, perplexity=0.05),
    "q5_1": Limits(logits=0.8, perplexity=0.05),
    "q5_0": Limits(logits=0.8, perplexity=0.05),
    "q4_k": Limits(logits=1.5, perplexity=0.15),
    "q4_1": Limits(logits=1.5, perplexity=0.15),
    "q4_0": Limits(logits=1.5, perplexity=0.20),
}
# In the order in which they are listed.
KINDS = {
    name: BY_NAME[name].number
    for name in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
}


def _ending(short: str, from_f32: bool) -> str:
    return short + ("-from-f32" if from_f32 else "")


def _format(short: str, from_f32: bool = False) -> Ggml:
    return Ggml(
        name=f"ggml-{_ending(short, from_f32)}",
        suffix={"f32": "-FP32", "f16": "-FP16"}.get(short, "-" + short.upper())
        + ("-from-FP32" if from_f32 else "")
        + ".bin",
        versions=frozenset(RULES),
        consumer="librwkv",
        family="ggml",
        is_read_here=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=LIMITS[short],
        quantization=_ending(short, from_f32) if KINDS[short] in QUANTIZED else "",
        kind=KINDS[short],
        from_f16=short != "f32" and not from_f32,
    )


FORMATS = tuple(_format(short) for short in KINDS) + tuple(
    _format(short, from_f32=True) for short in KINDS if short not in ("f32", "f16")
)
