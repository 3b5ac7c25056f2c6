"""`mlx`, `mlx-6bit`: a folder for mlx-lm, which runs version 7 on Apple's processors.

    config.json, generation_config.json, tokenizer files    as in a `transformers` folder
    model.safetensors, or shards                            the same names and shapes, {"format": "mlx"} as metadata

In `mlx` everything is in the checkpoint's types. `mlx-6bit` is what `mlx_lm.convert -q --q-bits 6` makes (mlx-lm 0.32,
models/rwkv7.py): matrices whose rows are whole blocks of 64 weights become `weight` (uint32), `scales` and `biases`,
of 6 bits, but the embedding and the second matrices of low-rank pairs of 8; config.json names these. See blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.formats.base import Format, Limits, Split, named_tokenizer
from rwkvflow.worker.formats.mlx import blocks
from rwkvflow.worker.formats.safetensors.layout import TensorEntry, safetensors_parts
from rwkvflow.worker.formats.transformers.layout import (
    SHARD,
    as_json,
    config_of,
    entries_of,
    small_files,
    tokenizer_files,
)
from rwkvflow.worker.model.weight_types import F32
from rwkvflow.worker.write.folder import FolderWriter
from rwkvflow.worker.write.layout import Encoding, Layout, Transform, Writer

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

FINER = 8  # bits of what mlx-lm's predicate picks out
HEAD = 32  # its kernel works on so many columns of a head at a time


@dataclass(frozen=True)
class Mlx(Format):
    """The folder. bits: of a weight; 0 where they are in the checkpoint's types."""

    bits: int = 0

    def computes_in_half(self, architecture: Architecture) -> bool:
        """A model in fp16: mlx computes in the type of the weights."""
        return architecture.dtype == "f16"

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold the model; None if it can."""
        if refused := super().refuse(architecture):
            return refused
        if architecture.n_att != architecture.n_embd:
            return (
                f"{self.name} cannot hold a model whose time mix is {architecture.n_att} wide, and not "
                f"{architecture.n_embd}: mlx-lm has one width"
            )
        if (architecture.head_size or 0) % HEAD:
            return (
                f"{self.name} cannot hold heads of {architecture.head_size}: mlx-lm's kernel wants a multiple of {HEAD}"
            )
        return None

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """The size of the artifact in bytes, without a tokenizer.json that the recipe names."""
        return sum(layout.size for layout in self._layouts(architecture, tensors, None).values())

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`, with the tokenizer.json that the recipe names."""
        return FolderWriter(path, self._layouts(architecture, tensors, named_tokenizer(engine)))

    def _layouts(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], tokenizer: Path | None
    ) -> dict[str, Layout]:
        """Each file of the folder. Raises WorkerError."""
        remarks: list[str] = []
        plain = list(entries_of(architecture, tensors, remarks))
        config = config_of(architecture)
        if self.bits:
            # mlx-lm looks at the first, the hub at the second.
            config["quantization"] = config["quantization_config"] = {
                "group_size": blocks.GROUP,
                "bits": self.bits,
                "mode": "affine",
                **{module(entry): {"bits": FINER} for entry in plain if is_quantized(entry) and is_finer(entry)},
            }
        files = {
            "config.json": as_json(config),
            "generation_config.json": as_json({"bos_token_id": 0, "eos_token_id": 0}),
            **tokenizer_files(architecture, tokenizer, remarks),
        }
        made = [part for entry in plain for part in self._stored(entry)]
        weights = safetensors_parts(made, self.split or Split(SHARD), {"format": "mlx"})
        return small_files(files, self.name, remarks) | weights

    def _stored(self, entry: TensorEntry) -> Iterator[TensorEntry]:
        """A tensor as it is stored. MLX has no float64 on a GPU: it is F32 here."""
        if not self.bits or not is_quantized(entry):
            narrow = Encoding(F32, transform=entry.encoding.transform)
            yield replace(entry, dtype="f32", encoding=narrow) if entry.dtype == "f64" else entry
            return
        bits = FINER if is_finer(entry) else self.bits
        rows, columns = entry.shape
        dtype = "f32" if entry.dtype == "f64" else entry.dtype
        count = (rows, columns // blocks.GROUP)

        def part(end: str, kind: str, shape: tuple[int, ...], function: Callable[[Any], Any]) -> TensorEntry:
            return TensorEntry(f"{module(entry)}.{end}", kind, shape, entry.source, _made(entry, end, bits, function))

        yield part("weight", "u32", (rows, columns * bits // 32), lambda values: blocks.packed(values, bits))
        yield part("scales", dtype, count, lambda values: _typed(blocks.steps(values, bits)[0], dtype))
        yield part("biases", dtype, count, lambda values: _typed(blocks.steps(values, bits)[1], dtype))


def module(entry: TensorEntry) -> str:
    """What mlx-lm calls the layer that a matrix is of."""
    return entry.name.removesuffix(".weight")


def is_quantized(entry: TensorEntry) -> bool:
    """Whether mlx-lm quantizes it: a linear layer or an embedding, in rows of whole blocks."""
    return entry.name.endswith(".weight") and len(entry.shape) == 2 and not entry.shape[1] % blocks.GROUP


def is_finer(entry: TensorEntry) -> bool:
    """Whether mlx-lm's predicate for version 7 gives it 8 bits."""
    return "lora.2" in module(entry) or "embeddings" in module(entry)


def _made(entry: TensorEntry, end: str, bits: int, function: Callable[[Any], Any]) -> Encoding:
    turn = entry.encoding.transform

    def made(values: Any) -> Any:
        import numpy as np

        return function(np.ascontiguousarray(values if turn is None else turn.function(values)))

    name = f"mlx {end} of {bits} bits in {entry.dtype}{f', {turn.name}' if turn else ''}"
    return Encoding(None, transform=Transform(name, made, arithmetic=True, elementwise=turn is None))


def _typed(values: Any, dtype: str) -> Any:
    """float32 values in another type of 16 bits, or as they are."""
    import numpy as np

    from rwkvflow.worker.model.rounding import rounded

    if dtype == "bf16":
        return (rounded("bf16", values).view("<u4") >> np.uint32(16)).astype("<u2")
    return values.astype({"f16": "<f2"}.get(dtype, "<f4"))


_PLAIN = Mlx(
    name="mlx",
    suffix="-MLX",
    versions=frozenset({"7"}),
    consumer="safetensors",
    family="mlx",
    is_read_here=True,
    may_be_equal=True,
    runner=f"{__package__}.run",
    card=f"{__package__}.card",
    limits=Limits(logits=0.02, perplexity=0.002),
    requires=("transformers", "pyrwkv-tokenizer"),
    fixed_epsilon=True,
    tokenizer=True,
    splits=True,
    runs_here=frozenset(),  # it is run in the tests; see run.py
)
FORMATS = (
    _PLAIN,
    replace(
        _PLAIN,
        name="mlx-6bit",
        suffix="-MLX-6bit",
        is_read_here=False,
        may_be_equal=False,
        limits=Limits(logits=0.8, perplexity=0.05),
        quantization="6bit",
        bits=6,
    ),
)
