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
WORDS = {dtype: word for word, dtype in DTYPES.items()}
LONGEST = 120  # characters of a slug, which is part of file names
_STAGE = re.compile(r"(cuda(?::(?:0|[1-9][0-9]?))?|cpu|mps) (fp16|fp32|bf16)(i8)?(?: \*([0-9]{1,6})(\+)?)?")
_SLUG = re.compile(r"(cuda[0-9]*|cpu|mps)-(fp16|fp32|bf16)(i8)?(?:-x([0-9]+)(plus)?)?(?:-(?=[cm])|$)")


@dataclass(frozen=True)
class Stage:
    """device as the package names it; types of activations and matrices ("u8": quantized); layers where it says."""

    device: str
    dtype: str
    matrices: str
    layers: int | None = None
    streams: bool = False


def parse(strategy: str) -> tuple[Stage, ...]:
    """The stages of a strategy. Raises ValueError where it is none, or none that the package can carry out."""
    found: list[Stage] = []
    for number, text in enumerate(strategy.split("->"), 1):
        match = _STAGE.fullmatch(" ".join(text.split()))
        if match is None:
            raise ValueError(f"stage {number}: {_problem(text)}")
        device, dtype, quantized, layers, streams = match.groups()
        matrices = "u8" if quantized else DTYPES[dtype]
        found.append(Stage(device, DTYPES[dtype], matrices, int(layers) if layers else None, bool(streams)))
        if layers is not None and not int(layers) and not streams:
            raise ValueError(f"stage {number}: *0 gives it no layers; leave the stage out, or write *0+ to stream them")
        if sum(stage.streams for stage in found) > 1:
            raise ValueError(f"stage {number}: only one stage can stream the layers that remain (+)")
    if len(slug(found)) > LONGEST:
        raise ValueError(f"it has {len(found)} stages, too many for the name of a file")
    return tuple(found)


def _problem(text: str) -> str:
    words = text.split()
    shown = ascii(" ".join(words)[:60])
    device = words[0] if words else ""
    if not words:
        return "nothing stands there; stages are joined by ->"
    if device == "dml":
        return "nothing here can prove files for dml"
    if not re.fullmatch(r"cuda(:(0|[1-9][0-9]?))?|cpu|mps", device):
        return f"{device[:40]!a} is no device; there are cpu, cuda, cuda:0 and so on, and mps"
    if len(words) < 2 or not re.fullmatch(r"(fp16|fp32|bf16)(i8)?", words[1]):
        return f"{shown} names no type; there are fp16, fp32 and bf16, each also with i8 behind it"
    return f"{shown} should end in a number of layers such as *10, or *10+ to stream those that remain"


def normal(strategy: str) -> str:
    """The strategy as the package writes it into a file."""
    return " -> ".join(
        f"{stage.device} {WORDS[stage.dtype]}{'i8' if stage.matrices == 'u8' else ''}"
        + ("" if stage.layers is None else f" *{stage.layers}{'+' if stage.streams else ''}")
        for stage in parse(strategy)
    )


def on_processor(strategy: str) -> str:
    """The same on the processor: every stage keeps its types and layers."""
    return re.sub(r"\b(cuda(:\d+)?|mps) ", "cpu ", normal(strategy))


def slug(stages: Sequence[Stage]) -> str:
    """A strategy as part of a name: "cuda fp16i8 *10 -> cuda fp16 *0+ -> cpu fp32" is
    cuda-fp16i8-x10-cuda-fp16-x0plus-cpu-fp32. `from_slug` gives it back.
    """
    return "-".join(
        f"{stage.device.replace(':', '')}-{WORDS[stage.dtype]}{'i8' if stage.matrices == 'u8' else ''}"
        + ("" if stage.layers is None else f"-x{stage.layers}{'plus' if stage.streams else ''}")
        for stage in stages
    )


def from_slug(text: str) -> str | None:
    """The strategy that `slug` makes this of; None where there is none."""
    found, at = [], 0
    while at < len(text):
        match = _SLUG.match(text, at)
        if match is None:
            return None
        device, dtype, quantized, layers, streams = match.groups()
        device = device if device in ("cpu", "cuda", "mps") else f"cuda:{device.removeprefix('cuda')}"
        count = "" if layers is None else f" *{layers}{'+' if streams else ''}"
        found.append(f"{device} {dtype}{quantized or ''}{count}")
        at = match.end()
    strategy = " -> ".join(found)
    try:
        return strategy if slug(parse(strategy)) == text else None
    except ValueError:
        return None


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
