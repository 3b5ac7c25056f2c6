"""Strategies of the `rwkv` package: which layer is computed where and held in which type.

A strategy is stages joined by `->`: a device, a type ("fp16", "fp32", "bf16", each optionally followed by i8 for
quantized matrices), and optionally `*n`, how many layers, where the head counts as one more; with `*n+` the layers
that remain are streamed there. See the package's documentation on PyPI.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

DTYPES = {"fp16": "f16", "fp32": "f32", "bf16": "bf16"}
_STAGE = re.compile(r"(cuda(?::[0-9]+)?|cpu|mps|dml) (fp16|fp32|bf16)(i8)?(?: \*([0-9]{1,6})(\+)?)?")


@dataclass(frozen=True)
class Stage:
    """device as the package names it; types of activations and matrices ("u8": quantized); layers where it says."""

    device: str
    dtype: str
    matrices: str
    layers: int | None = None
    streams: bool = False


def parse(strategy: str) -> tuple[Stage, ...]:
    """The stages of a strategy. Raises ValueError where it is none."""
    found = []
    for text in strategy.split("->"):
        match = _STAGE.fullmatch(" ".join(text.split()))
        if match is None:
            raise ValueError(f"{text.strip()!r} is no stage of a strategy such as 'cuda fp16i8 *10'")
        device, dtype, quantized, layers, streams = match.groups()
        matrices = "u8" if quantized else DTYPES[dtype]
        found.append(Stage(device, DTYPES[dtype], matrices, int(layers) if layers else None, bool(streams)))
    return tuple(found)


def normal(strategy: str) -> str:
    """The strategy as the package writes it into a file."""
    return " -> ".join(part.strip() for part in strategy.split("->"))


def by_layer(stages: Sequence[Stage], layers: int) -> list[Stage]:
    """The stage of each layer and, last, of the head: layers + 1 in all, shared out as the package does."""
    total = layers + 1
    counts = [0] * len(stages)
    streaming = None
    given = free = 0
    for index, stage in enumerate(stages):
        if stage.layers is None:
            free += 1
            continue
        counts[index] = stage.layers
        if stage.streams:
            streaming = index
        given += stage.layers
        if given >= total:
            counts[index] += total - given
            break
    left = total - given
    if streaming is not None:
        counts[streaming] += max(left, 0)
    elif left > 0:
        if free:
            for index in range(len(stages)):
                if counts[index] == 0 and free:
                    counts[index] = (total - given) // free
                    given += counts[index]
                    free -= 1
        counts[-1] += max(total - given, 0)
    return [stage for stage, count in zip(stages, counts, strict=True) for _ in range(count)][:total]
