"""`faster-rwkv-f16`, `-f32`: faster-rwkv's `.fr`, one msgpack map of the tensors that ChatRWKV's converter makes.

    embd_weights   a list of one tensor [n_embd] for each token, ln0 folded in
    weights        name to tensor; matrices transposed, in F16 everything halved after each six layers
    n_head         versions 5.x
    version        "4", "5", "5.1" or "5.2"
    n_layer, n_embd, n_att, n_ffn

A tensor is {dtype: "torch.float16" or "torch.float32", data: bytes, shape: [...]}. As faster-rwkv's
tools/convert_weight.py writes it from a file converted for "cuda fp16" or "cpu fp32".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import EMULATED, FileFormat, Limits
from rwkvflow.worker.formats.chatrwkv import layout as chatrwkv
from rwkvflow.worker.formats.chatrwkv import strategy as strategies
from rwkvflow.worker.model.versions import RESCALE_EVERY
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Transform
from rwkvflow.worker.write.transforms import TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo
    from rwkvflow.worker.write.pth_writer import PthTensor

DTYPES = {"f16": "torch.float16", "f32": "torch.float32"}
LARGEST = 2**32 - 1  # bytes of one msgpack value


@dataclass(frozen=True)
class FasterRwkv(FileFormat):
    """A single file."""

    strategy: str = "cpu fp32"

    @property
    def _stages(self) -> list[strategies.Stage]:
        return list(strategies.parse(self.strategy))

    @property
    def dtype(self) -> str:
        """The dtype of matrices."""
        (stage,) = self._stages
        return stage.dtype

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        (stage,) = self._stages
        rescale = RESCALE_EVERY if stage.dtype == "f16" else 0
        plan = chatrwkv.TensorPlan(architecture, [stage] * (architecture.n_layer + 1), rescale)
        made = plan.tensors(tensors)
        heads = {} if architecture.version == "4" else {"n_head": architecture.n_head or 1}
        numbers = {
            "n_layer": architecture.n_layer,
            "n_embd": architecture.n_embd,
            "n_att": architecture.n_att,
            "n_ffn": architecture.n_ffn,
        }
        build = LayoutBuilder()
        build.literal(_map(3 + len(heads) + len(numbers)))
        (embedding,) = (tensor for tensor in made if tensor.name == "emb.weight")
        build.literal(_text("embd_weights") + _array(architecture.n_vocab))
        _rows(build, embedding, tensors["emb.weight"].dtype)
        build.literal(_text("weights") + _map(len(made) - 1))
        for tensor in made:
            if tensor is not embedding:
                _tensor(build, tensor)
        for key, number in heads.items():
            build.literal(_text(key) + _integer(number))
        build.literal(_text("version") + _text(architecture.version.removesuffix(".0")))
        for key, number in numbers.items():
            build.literal(_text(key) + _integer(number))
        return build.done()


def _around(dtype: str, shape: tuple[int, ...], nbytes: int) -> tuple[bytes, bytes]:
    """What stands before and behind the data of a tensor."""
    before = _map(3) + _text("dtype") + _text(DTYPES[dtype]) + _text("data") + _bytes(nbytes)
    return before, _text("shape") + _array(len(shape)) + b"".join(map(_integer, shape))


def _rows(build: LayoutBuilder, tensor: PthTensor, dtype: str) -> None:
    """The embedding, each row a tensor: the transform puts what is around it."""
    count, width = tensor.shape
    nbytes = tensor.nbytes // count
    before, behind = _around(tensor.dtype, (width,), nbytes)
    fold = chatrwkv.folded(dtype)

    def function(values: Any, *needed: Any) -> Any:
        import numpy as np

        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(
                fold.function(values, *needed).astype("<f2" if tensor.dtype == "f16" else "<f4")
            )
        out = np.empty((len(data), len(before) + nbytes + len(behind)), np.uint8)
        out[:, : len(before)] = np.frombuffer(before, np.uint8)
        out[:, len(before) : len(before) + nbytes] = data.view(np.uint8)
        out[:, len(before) + nbytes :] = np.frombuffer(behind, np.uint8)
        return out

    transform = replace(fold, name=f"{fold.name}, rows of msgpack in {tensor.dtype}", function=function)
    size = count * (len(before) + nbytes + len(behind))
    build.slot(tensor.source, math.prod(tensor.shape), Encoding(None, transform=transform), size=size)


def _tensor(build: LayoutBuilder, tensor: PthTensor) -> None:
    if tensor.nbytes > LARGEST:
        raise WorkerError(f"{tensor.name} takes {tensor.nbytes} bytes, more than a value of msgpack can have")
    before, behind = _around(tensor.dtype, tensor.shape, tensor.nbytes)
    encoding = tensor.encoding
    if tensor.transposed:
        encoding = replace(encoding, transform=_swapped(encoding.transform))
    build.literal(_text(tensor.name) + before)
    build.slot(tensor.source, math.prod(tensor.shape), encoding, size=tensor.nbytes)
    build.literal(behind)


def _swapped(transform: Transform | None) -> Transform:
    if transform is None:
        return TRANSPOSE
    function = transform.function
    return replace(
        transform,
        name=f"{transform.name}, {TRANSPOSE.name}",
        function=lambda values, *needed: TRANSPOSE.function(function(values, *needed)),
        elementwise=False,
    )


# ---- msgpack, github.com/msgpack/msgpack/blob/master/spec.md: the shortest form of each value ------------------------


def _text(value: str) -> bytes:
    raw = value.encode()
    if len(raw) < 32:
        return bytes([0xA0 | len(raw)]) + raw
    return (struct.pack(">BB", 0xD9, len(raw)) if len(raw) < 256 else struct.pack(">BH", 0xDA, len(raw))) + raw


def _bytes(length: int) -> bytes:
    """What stands before so many bytes."""
    if length < 256:
        return struct.pack(">BB", 0xC4, length)
    return struct.pack(">BH", 0xC5, length) if length < 65536 else struct.pack(">BI", 0xC6, length)


def _integer(value: int) -> bytes:
    if value < 128:
        return bytes([value])
    for code, layout, limit in ((0xCC, ">BB", 1 << 8), (0xCD, ">BH", 1 << 16), (0xCE, ">BI", 1 << 32)):
        if value < limit:
            return struct.pack(layout, code, value)
    return struct.pack(">BQ", 0xCF, value)


def _sized(short: int, long: int, count: int) -> bytes:
    if count < 16:
        return bytes([short | count])
    return struct.pack(">BH", long, count) if count < 65536 else struct.pack(">BI", long + 1, count)


def _array(count: int) -> bytes:
    return _sized(0x90, 0xDC, count)


def _map(count: int) -> bytes:
    return _sized(0x80, 0xDE, count)


def _format(short: str, strategy: str, limits: Limits) -> FasterRwkv:
    return FasterRwkv(
        name=f"faster-rwkv-{short}",
        suffix={"f16": "-FP16.fr", "f32": "-FP32.fr"}[short],
        versions=frozenset({"4", "5.0", "5.1", "5.2"}),
        consumer="msgpack",
        family="faster",
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=limits,
        requires=("msgpack",),
        strategy=strategy,
        runs_here=frozenset(),
        half=EMULATED if short == "f16" else "",
    )


FORMATS = (
    _format("f16", "cuda fp16", Limits(logits=0.3, perplexity=0.02)),
    _format("f32", "cpu fp32", Limits(logits=0.15, perplexity=0.01)),
)
