"""`chatrwkv-<strategy>`: the `.pth` that PyPI's `rwkv` package (ChatRWKV, text-generation-webui) loads without work.

It is what the package's own convert_and_save_and_exit writes for a strategy: ln0 folded into the embedding, matrices
transposed (as views: the values stay where they are), types of the strategy, decays and bonuses worked out in fp32,
everything in fp16 halved after each six layers, matrices of "i8" strategies as bytes with `_mx _rx _my _ry` beside
them; `_strategy`, `_rescale_layer` and `_version` say so. The package converts no version 7: it does the same work at
every start, and the file is the author's tensors in the strategy's type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import RUN, FileFormat, Limits
from rwkvflow.worker.formats.chatrwkv import strategy as strategies
from rwkvflow.worker.model.versions import RESCALE_EVERY, STATEFUL
from rwkvflow.worker.model.weight_types import BF16, F16, F32
from rwkvflow.worker.write.layout import Encoding, Transform, Writer
from rwkvflow.worker.write.pth_writer import PthLayout, PthTensor, PthWriter, pth_layout
from rwkvflow.worker.write.transforms import EXP, EXP_NEGATIVE_EXP, NEGATIVE_EXP

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

VERSION = "0.7"  # of the package's own files
FAMILY = "chatrwkv"
VERSIONS = frozenset({"4", "5.0", "5.1", "5.2", "6", "7"})  # of which the package runs .pth files
KINDS = {"f32": F32, "f16": F16, "bf16": BF16}
MATRICES = ("key.weight", "value.weight", "receptance.weight", "gate.weight", "output.weight", "head.weight")
LN0 = ("blocks.0.ln0.weight", "blocks.0.ln0.bias")


@dataclass(frozen=True)
class ChatRwkv(FileFormat):
    """A single file for one strategy."""

    strategy: str = "cpu fp32"

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> PthLayout:
        """Where every tensor goes in the file."""
        stages = strategies.parse(self.strategy)
        if architecture.version == "7":
            if len(stages) > 1 or stages[0].matrices == "u8":
                raise WorkerError(f"{self.name}: the rwkv package takes one stage without i8 for version 7")
            return pth_layout([_plain(info, stages[0].dtype) for info in tensors.values()])
        rescale = RESCALE_EVERY if any(stage.dtype == "f16" for stage in stages) else 0
        plan = TensorPlan(architecture, strategies.by_layer(stages, architecture.n_layer), rescale)
        values: dict[str, str | int] = {
            "_strategy": strategies.normal(self.strategy),
            "_rescale_layer": rescale,
            "_version": VERSION,
        }
        return pth_layout(plan.tensors(tensors), values)

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`."""
        return PthWriter(path, self.layout(architecture, tensors))


def _plain(info: TensorInfo, dtype: str) -> PthTensor:
    return PthTensor(info.name, dtype, tuple(info.shape), info.name, Encoding(KINDS[dtype]))


def name_in_file(name: str, architecture: Architecture) -> str:
    """What a tensor of the checkpoint is called in the file; see the module on version 6."""
    return name if architecture.version == "6" else name.replace(".time_faaaa", ".time_first")


def layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to in a strategy: the head and ln_out come after the last."""
    if "ln_out." in name or "head." in name:
        return layers
    return int(name.split(".")[1]) if name.startswith("blocks.") else 0


@dataclass(frozen=True)
class TensorPlan:
    """How each tensor of versions 4 to 6 stands in the file."""

    architecture: Architecture
    stages: list[strategies.Stage]
    rescale: int

    def tensors(self, tensors: Mapping[str, TensorInfo]) -> list[PthTensor]:
        """All of them in the package's order: what quantized matrices need besides comes last."""
        real_first = any(".time_faaaa" in name for name in tensors)
        out: list[PthTensor] = []
        scales: list[PthTensor] = []
        for info in tensors.values():
            if info.name in LN0:
                continue
            stage = self.stages[layer_of(info.name, self.architecture.n_layer)]
            if self._quantized(info, stage):
                first, *rest = self._bytes(info, stage)
                out.append(first)
                scales += rest
            else:
                out.append(self._tensor(info, stage, real_first))
        return out + scales

    def _quantized(self, info: TensorInfo, stage: strategies.Stage) -> bool:
        return stage.matrices == "u8" and self._is_matrix(info) and ".time_" not in info.name

    @staticmethod
    def _is_matrix(info: TensorInfo) -> bool:
        name, shape = info.name, info.shape
        return len(shape) == 2 and "emb" not in name and "_w1" not in name and "_w2" not in name

    def _divisor(self, name: str) -> int:
        if not self.rescale or ("att.output.weight" not in name and "ffn.value.weight" not in name):
            return 1
        return 1 << (layer_of(name, self.architecture.n_layer) // self.rescale)

    def _tensor(self, info: TensorInfo, stage: strategies.Stage, real_first: bool) -> PthTensor:
        name, shape = info.name, tuple(info.shape)
        if name == "emb.weight":
            return PthTensor(name, stage.dtype, shape, name, Encoding(KINDS[stage.dtype], transform=folded(info.dtype)))
        if ".time_" in name:
            shape = tuple(dim for dim in shape if dim != 1)
        if ".time_decay" in name and "_w" not in name:
            return PthTensor(name, "f32", self._per_head(info), name, Encoding(F32, transform=self._decay()))
        if ".time_first" in name or ".time_faaaa" in name:
            to_exp = self.architecture.version != "4" and not real_first
            encoding = Encoding(F32, transform=EXP if to_exp else None)
            return PthTensor(name_in_file(name, self.architecture), "f32", self._per_head(info), name, encoding)
        if ".ln_x" in name:
            return PthTensor(name, "f32", shape, name, Encoding(F32))
        matrix = len(shape) == 2 and self._is_matrix(info)
        dtype = stage.matrices if matrix and stage.matrices != "u8" else stage.dtype
        divisor = self._divisor(name)
        encoding = Encoding(KINDS[dtype], transform=_divided(divisor, info.dtype) if divisor > 1 else None)
        if any(part in name for part in MATRICES) and len(shape) == 2:
            return PthTensor(name, dtype, (shape[1], shape[0]), name, encoding, transposed=True)
        return PthTensor(name, dtype, shape, name, encoding)

    def _per_head(self, info: TensorInfo) -> tuple[int, ...]:
        version, heads = self.architecture.version, self.architecture.n_head or 1
        if version == "4":
            return (info.numel,)
        return (heads, info.numel // heads, 1) if version in ("5.2", "6") else (info.numel, 1, 1)

    def _decay(self) -> Transform | None:
        return {"4": NEGATIVE_EXP, "6": None}.get(self.architecture.version, EXP_NEGATIVE_EXP)

    def _bytes(self, info: TensorInfo, stage: strategies.Stage) -> Iterator[PthTensor]:
        """A quantized matrix and its scales."""
        from rwkvflow.worker.formats.chatrwkv.eight_bit import Quantized

        name, (rows, columns) = info.name, info.shape
        divisor, swapped = self._divisor(name), any(part in name for part in MATRICES)
        quantized = Quantized(divisor, info.dtype, swapped)
        shape = (columns, rows) if swapped else (rows, columns)

        def part(suffix: str, dtype: str, shape: tuple[int, ...], encoding: Encoding, view: bool = False) -> PthTensor:
            return PthTensor(name + suffix, dtype, shape, name, encoding, view)

        yield part("", "u8", shape, Encoding(None, transform=quantized.transform("bytes")), swapped)
        shapes = {"mx": (shape[1],), "rx": (shape[1],), "my": (shape[0], 1), "ry": (shape[0], 1)}
        for key in ("my", "mx", "rx", "ry") if shape[0] > shape[1] else ("mx", "my", "rx", "ry"):
            encoding = Encoding(KINDS[stage.dtype], transform=quantized.transform(key))
            yield part("_" + key, stage.dtype, shapes[key], encoding)


def folded(dtype: str) -> Transform:
    """The embedding after ln0, rounded to the checkpoint's type as the package does."""

    def function(values: Any, weight: Any, bias: Any) -> Any:
        from rwkvflow.worker.model.rounding import layer_norm, rounded

        return rounded(dtype, layer_norm(values, weight, bias))

    return Transform(f"ln0 in {dtype}", function, arithmetic=True, elementwise=True, needs=LN0)


def _divided(divisor: int, dtype: str) -> Transform:
    def function(values: Any) -> Any:
        from rwkvflow.worker.model.rounding import rounded

        return rounded(dtype, values / values.dtype.type(divisor))

    return Transform(f"/ {divisor} in {dtype}", function, arithmetic=True, elementwise=True)


# ln0 is folded in the checkpoint's type, which loses 2^-9 of each value in bf16; what is computed in fp16 loses 2^-11
# at each operation, in bf16 2^-8.
LIMITS = {
    "f32": Limits(logits=0.15, perplexity=0.01),
    "bf16": Limits(logits=0.5, perplexity=0.03),
    "f16": Limits(logits=0.3, perplexity=0.02),
    "i8": Limits(logits=1.0, perplexity=0.05),
    "bf16i8": Limits(logits=2.0, perplexity=0.10),
}


def of_strategy(strategy: str) -> ChatRwkv:
    """The format for any strategy. Raises ValueError with what is wrong with it."""
    stages = strategies.parse(strategy)
    short = strategies.slug(stages)
    limits = [LIMITS[_loss(stage)] for stage in stages]
    # The package knows no stages, no i8 and no streaming of version 7.
    plain = len(stages) == 1 and stages[0].matrices != "u8" and stages[0].layers is None
    return ChatRwkv(
        name=f"{FAMILY}-{short}",
        suffix=f"-{short}.pth",
        versions=VERSIONS if plain else VERSIONS - {"7"},
        consumer="rwkv",
        family="chatrwkv",
        is_read_here=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=Limits(max(item.logits for item in limits), max(item.perplexity for item in limits)),
        requires=("rwkv",),
        needs_torch=True,
        states=STATEFUL - {"7"},  # the package looks for none in 7
        strategy=strategies.normal(strategy),
        half=RUN if any(stage.dtype == "f16" for stage in stages) else "",
    )


def _loss(stage: strategies.Stage) -> str:
    if stage.matrices != "u8":
        return stage.dtype
    return "bf16i8" if stage.dtype == "bf16" else "i8"


def named(name: str) -> ChatRwkv | None:
    """The format of a name that `of_strategy` makes; None where it makes none such."""
    family, _, short = name.partition("-")
    strategy = strategies.from_slug(short) if family == FAMILY and short else None
    return of_strategy(strategy) if strategy else None


FORMATS = tuple(of_strategy(strategy) for strategy in ("cpu fp32", "cpu bf16", "cuda fp16", "cuda fp16i8"))
