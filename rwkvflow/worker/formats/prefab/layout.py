"""`prefab-f16`, `-int8`, `-nf4`: web-rwkv's `.prefab`, its model as it lies in memory, which Ai00 loads at once.

One CBOR map, as web-rwkv 0.10.10 and later write it with serde and cbor4ii:

    context   an empty array
    info      version ("V7"), num_layer, num_emb, num_hidden, num_vocab, num_head, custom ("None", or low-rank sizes)
    rescale, sep
    tensor    embed, head, layers (a list): the runtime's structs, whose fields stand in maps/prefab.py

A tensor is {shape: [columns, rows, …, …], data: bytes}, always of four sizes, the last dim first. A matrix is an enum:
{"Fp16": tensor}, {"Int8": {w, m}} or {"Fp4": {q, w, m}}; see blocks.py. In `-int8` and `-nf4` the large matrices of
each layer are quantized, not the head, the embedding and the low-rank pairs.

Versions of web-rwkv before 0.10.10 name the third one otherwise ("Float4", "NF4"), and read the other two formats.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import EMULATED, FileFormat, Limits
from rwkvflow.worker.formats.prefab import blocks
from rwkvflow.worker.maps import prefab as maps
from rwkvflow.worker.maps.prefab import Place
from rwkvflow.worker.model.weight_types import F16, F32
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Transform
from rwkvflow.worker.write.transforms import TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.maps.changes import ValueChange
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo


@dataclass(frozen=True)
class Prefab(FileFormat):
    """A single file. `blocks`: how a layer's large matrices are quantized, "int8" or "nf4"; "" for fp16."""

    blocks: str = ""

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold the model; None if it can."""
        if refused := super().refuse(architecture):
            return refused
        width = architecture.n_embd
        if architecture.n_att != width:
            return f"{self.name} cannot hold a model whose time mix is {architecture.n_att} wide, and not {width}"
        if width % maps.PADDED:
            return f"{self.name} cannot hold a model that is {width} wide: web-rwkv fills it up to a multiple of 8"
        return None

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        build = LayoutBuilder()
        _File(self, architecture, tensors, build).write()
        return build.done()


class _File:
    """One file on its way into a LayoutBuilder."""

    def __init__(
        self, item: Prefab, architecture: Architecture, tensors: Mapping[str, TensorInfo], build: LayoutBuilder
    ) -> None:
        self._item = item
        self._architecture = architecture
        self._tensors = tensors
        self._build = build

    def write(self) -> None:
        version = self._architecture.version
        put = self._build.literal
        put(_map(5) + _text("context") + _array(0))
        put(_text("info") + model_info(self._architecture))
        put(_text("rescale") + _integer(maps.RESCALE[version]) + _text("sep") + _integer(maps.SEPARATE))
        put(_text("tensor") + _map(3))
        beside = [(place.path, place, place.sources, 0) for place in maps.GLOBAL[version]]
        self._fields(beside, 0)
        layers = self._architecture.n_layer
        put(_text("layers") + _array(layers))
        for layer in range(layers):
            found = [
                (place.path, place, maps.sources(version, place, layer), maps.halvings(version, place, layer))
                for place in maps.LAYERS[version]
            ]
            put(_map(len({path[0] for path, *_ in found})))
            self._fields(found, 0)

    def _fields(self, found: Iterable[tuple[tuple[str, ...], Place, tuple[str, ...], int]], depth: int) -> None:
        """The fields of a struct, each with its name; those of a struct within it stand together."""
        for name, group in groupby(found, lambda field: field[0][depth]):
            fields = list(group)
            self._build.literal(_text(name))
            (path, place, sources, halvings), more = fields[0], len(fields) > 1
            if more or len(path) > depth + 1:
                self._build.literal(_map(len({inner[depth + 1] for inner, *_ in fields})))
                self._fields(fields, depth + 1)
            else:
                self._place(place, sources, halvings)

    def _place(self, place: Place, sources: tuple[str, ...], halvings: int) -> None:
        kind = place.kind
        if kind == "layer":
            self._large(sources[0], halvings)
            return
        if place.is_matrix:
            self._build.literal(_map(1) + _text("Fp16"))
        infos = [self._info(source) for source in sources]
        sizes = _sizes(kind, infos, self._architecture)
        if kind == "wide":
            times = math.prod(sizes) // infos[0].numel
            self._tensor(sizes, 4, [(infos[0], Encoding(F32, transform=_widened(place.change, times)))])
            return
        encoding = Encoding(F16, transform=TRANSPOSE if kind == "swapped" else None)
        self._tensor(sizes, 2, [(info, encoding) for info in infos])

    def _info(self, source: str) -> TensorInfo:
        found = self._tensors.get(source)
        if found is None:
            raise WorkerError(f"{source} is missing, and web-rwkv's model has a field for it")
        return found

    def _tensor(self, sizes: tuple[int, ...], width: int, parts: list[tuple[TensorInfo, Encoding]]) -> None:
        """A tensor of `width` bytes a value: its parts, and zeros after them where it is larger."""
        nbytes = math.prod(sizes) * width
        self._build.literal(_blob(sizes, nbytes))
        begin = self._build.size
        for info, encoding in parts:
            self._build.slot(info.name, info.numel, encoding, size=nbytes if width == 4 else 2 * info.numel)
        self._build.literal(bytes(nbytes - (self._build.size - begin)))

    def _large(self, source: str, halvings: int) -> None:
        info = self._info(source)
        rows, columns = info.shape
        put = self._build.literal
        if not self._item.blocks:
            put(_map(1) + _text("Fp16") + _blob((columns, rows, 1, 1), 2 * info.numel))
            self._build.slot(source, info.numel, Encoding(F16, transform=_halved(halvings) if halvings else None))
            return
        if self._item.blocks == "int8":
            self._whole(info, blocks.INT8, 4)
            put(_map(1) + _text("Int8") + _map(2) + _text("w") + _blob((columns, rows, 1, 1), info.numel))
            self._quantized(info, "int8 bytes", blocks.int8, halvings, info.numel)
            count = info.numel // blocks.INT8
            put(_text("m") + _blob((2 * count, 1, 1, 1), 4 * count))
            self._quantized(info, "int8 ends", blocks.int8_ends, halvings, 4 * count)
            return
        self._whole(info, blocks.NF4, 8)
        levels = struct.pack(f"<{len(blocks.LEVELS)}f", *blocks.LEVELS)
        put(_map(1) + _text("Fp4") + _map(3) + _text("q") + _blob((len(blocks.LEVELS), 1, 1, 1), len(levels)) + levels)
        put(_text("w") + _blob((columns // 2, rows, 1, 1), info.numel // 2))
        self._quantized(info, "nf4 levels", blocks.nf4, halvings, info.numel // 2)
        count = info.numel // blocks.NF4
        put(_text("m") + _blob((count, 1, 1, 1), 2 * count))
        self._quantized(info, "nf4 scales", blocks.nf4_scales, halvings, 2 * count)

    def _whole(self, info: TensorInfo, block: int, step: int) -> None:
        if info.numel % block or info.shape[1] % step:
            raise WorkerError(
                f"{info.name} is of shape {list(info.shape)}: web-rwkv quantizes blocks of {block} values in rows of "
                f"a multiple of {step}"
            )

    def _quantized(
        self, info: TensorInfo, what: str, function: Callable[[Any], Any], halvings: int, nbytes: int
    ) -> None:
        name = info.name

        def made(values: Any) -> Any:
            import numpy as np

            halved = _in_f16(values, halvings)
            if not np.isfinite(halved).all():
                raise WorkerError(f"{name} holds a value that fp16 does not, and that {what.split()[0]} cannot hold")
            return function(halved.reshape(-1))

        transform = Transform(f"{what} of F16 / 2^{halvings}", made, arithmetic=True, elementwise=True)
        self._build.slot(name, info.numel, Encoding(None, transform=transform), size=nbytes)


def _sizes(kind: str, infos: list[TensorInfo], architecture: Architecture) -> tuple[int, ...]:
    """The sizes of a tensor in the file, the last dim first."""
    info = infos[0]
    if kind == "vector":
        return (info.numel, 1, 1, 1)
    if kind == "wide":
        return (architecture.n_embd, 1, 1, 1)
    if kind == "heads":
        heads = architecture.n_head or 1
        return (info.numel // heads, heads, 1, 1)
    if kind == "stack":
        return (info.numel, 1, len(infos), 1)
    shape = tuple(info.shape)
    if len(shape) < 2:
        raise WorkerError(f"{info.name} should be a matrix, and is of shape {list(shape)}")
    if kind == "swapped":
        shape = (*shape[:-2], shape[-1], shape[-2])
    if kind in ("table", "padded"):
        shape = (-(-shape[0] // maps.PADDED) * maps.PADDED, shape[1])
    return (*shape[::-1], 1, 1, 1, 1)[:4]


def model_info(architecture: Architecture) -> bytes:
    """web-rwkv's ModelInfo."""
    version, lora = architecture.version, architecture.lora
    custom = _text("None")
    if version == "6":
        custom = _numbers("V6", {"time_mix": lora["maa"], "time_decay": lora["decay"]})
    elif version == "7":
        custom = _numbers("V7", {x: lora.get(x, lora["a"]) for x in "wagv"})  # of one layer: nothing is mixed in
    numbers = {
        "num_layer": architecture.n_layer,
        "num_emb": architecture.n_embd,
        "num_hidden": architecture.n_ffn,
        "num_vocab": architecture.n_vocab,
        "num_head": architecture.n_head or 1,
    }
    fields = b"".join(_text(key) + _integer(number) for key, number in numbers.items())
    return _map(7) + _text("version") + _text(maps.VARIANTS[version]) + fields + _text("custom") + custom


def _numbers(variant: str, numbers: Mapping[str, int]) -> bytes:
    fields = b"".join(_text(key) + _integer(number) for key, number in numbers.items())
    return _map(1) + _text(variant) + _map(len(numbers)) + fields


# ---- values --------------------------------------------------------------------------------------------------------


def _in_f16(values: Any, halvings: int) -> Any:
    """float32 values in fp16, halved there so often."""
    import numpy as np

    with np.errstate(over="ignore"):
        found = values.astype("<f2")
    return (found.astype("<f4") * np.float32(0.5**halvings)).astype("<f2") if halvings else found


def _halved(halvings: int) -> Transform:
    def function(values: Any) -> Any:
        return _in_f16(values, halvings).astype("<f4")

    return Transform(f"F16 / 2^{halvings}", function, arithmetic=True, elementwise=True)


def _widened(change: ValueChange | None, times: int) -> Transform:
    def function(values: Any) -> Any:
        import numpy as np

        found = _in_f16(values.reshape(-1), 0).astype("<f4")
        return np.repeat(found if change is None else change.function(found), times)

    name = f"F16, {change.name}" if change else "F16"
    return Transform(f"{name}, each {times} times, as F32", function, arithmetic=True)


# ---- CBOR, RFC 8949: definite lengths and the shortest form of each, as serde and cbor4ii write ----------------------


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for code, layout, limit in ((24, ">BB", 1 << 8), (25, ">BH", 1 << 16), (26, ">BI", 1 << 32)):
        if value < limit:
            return struct.pack(layout, major << 5 | code, value)
    return struct.pack(">BQ", major << 5 | 27, value)


def _integer(value: int) -> bytes:
    return _head(0, value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return _head(3, len(raw)) + raw


def _array(count: int) -> bytes:
    return _head(4, count)


def _map(count: int) -> bytes:
    return _head(5, count)


def _blob(sizes: tuple[int, ...], nbytes: int) -> bytes:
    """What stands before the data of a tensor."""
    shape = _array(len(sizes)) + b"".join(map(_integer, sizes))
    return _map(2) + _text("shape") + shape + _text("data") + _head(2, nbytes)


_F16 = Prefab(
    name="prefab-f16",
    suffix="-FP16.prefab",
    versions=frozenset(maps.VARIANTS),
    consumer="cbor2",
    family="prefab",
    runner=f"{__package__}.run",
    card=f"{__package__}.card",
    limits=Limits(logits=0.15, perplexity=0.01),
    requires=("cbor2",),
    runs_here=frozenset(),
    half=EMULATED,
    fixed_epsilon=True,
)
FORMATS = (
    _F16,
    replace(
        _F16,
        name="prefab-int8",
        suffix="-INT8.prefab",
        limits=Limits(logits=0.3, perplexity=0.02),
        quantization="int8",
        blocks="int8",
    ),
    replace(
        _F16,
        name="prefab-nf4",
        suffix="-NF4.prefab",
        limits=Limits(logits=2.0, perplexity=0.15),
        quantization="nf4",
        blocks="nf4",
    ),
)
