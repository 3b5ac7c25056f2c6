"""`ncnn-*`: a folder with one token's forward pass for ncnn, from layers that every ncnn has.

    model.param     the magic number 7767517; numbers of layers and blobs; a line a layer: type, name, numbers of inputs
                    and outputs, their blobs, parameters `id=value`
    model.bin       weights in the order of the layers; those of Embed and InnerProduct behind a flag of four bytes (0:
                    float32; 0x01306B47: F16, padded to a multiple of 4), all others float32
    model.config    lines "key: value" (faster-rwkv reads them)

Layers and parameters are those of ncnn's docs/developer-guide/operators.md. A blob has one reader, so what several read
goes through a Split. Blobs are named as the runtime that knows the version expects them: for versions 4 and 5
faster-rwkv's `input_id`, `state_{layer}_{j}`, `output_state_{layer}_{j}` and `output`; for 6 and 7 rwkv-mobile's
`token`, `state_{n}_in`, `state_{n}_out` with n = 3·layer + j, `logits` and `model_info` (version, layers, heads, head
size, vocabulary). The token is an int32. Version 4's states with j = 3 begin with -1e30, all others with 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import BOUNDED, FolderFormat, Limits
from rwkvflow.worker.model.versions import LAYER_NORM_EPS
from rwkvflow.worker.model.weight_types import F16, F32, size_of
from rwkvflow.worker.write.graph import VERSIONS, Ops, config, forward, part_of, states
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Transform, literal_layout
from rwkvflow.worker.write.transforms import TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

PARAM, BIN, CONFIG = "model.param", "model.bin", "model.config"
MAGIC = 7767517
FLAGS = {F32: 0, F16: 0x01306B47}
IMPLEMENTATION = 2  # of faster-rwkv's reader: the token is an input
LARGEST = 2**31 - 1  # numbers in a .param are int32
BINARY = {"add": 0, "sub": 1, "mul": 2, "div": 3, "max": 4}  # BinaryOp's types
UNARY = {"neg": 1, "sqrt": 5, "exp": 7, "tanh": 16}  # UnaryOp's types; the others are layers
OWN_LAYER = {"sigmoid": "Sigmoid", "relu": "ReLU"}


@dataclass(frozen=True)
class Names:
    """What a runtime calls the blobs."""

    token: str
    logits: str
    state: str
    kept: str

    def of(self, pattern: str, layer: int, index: int) -> str:
        """The blob of a state."""
        return pattern.format(layer=layer, index=index, number=3 * layer + index)


FASTER_RWKV = Names("input_id", "output", "state_{layer}_{index}", "output_state_{layer}_{index}")
RWKV_MOBILE = Names("token", "logits", "state_{number}_in", "state_{number}_out")


def names_of(version: str) -> Names:
    """The names for a version."""
    return RWKV_MOBILE if version in ("6", "7") else FASTER_RWKV


@dataclass(frozen=True)
class _NcnnWeight:
    source: str  # "" for `data`
    count: int
    encoding: Encoding
    flagged: bool = False
    data: bytes = b""


@dataclass
class _Layer:
    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, int | float | list[int]] = field(default_factory=dict)
    weights: tuple[_NcnnWeight, ...] = ()


class _NcnnGraph(Ops):
    """Vectors have one dim here. `w`, `h`, `c` are ncnn's names of dims, the last of PyTorch's first."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, TensorInfo], kind: int) -> None:
        super().__init__(architecture, tensors)
        self.kind = kind  # of matrices
        self.layers: list[_Layer] = []
        self.names = names_of(architecture.version)
        self.results: list[tuple[str, str]] = []  # (value, name of the blob that it has to be in)
        self._count = 0

    def build(self) -> None:
        """The whole graph."""
        architecture = self.architecture
        self.layers.append(_Layer("Input", [], [self.names.token], {0: 1}))
        for state in states(architecture):
            name = self.names.of(self.names.state, state.layer, state.index)
            self.layers.append(_Layer("Input", [], [name], _dims(state.shape)))
        if self.names is RWKV_MOBILE:
            heads, size = architecture.n_head or 1, architecture.head_size or 1
            numbers = (int(architecture.version), architecture.n_layer, heads, size, architecture.n_vocab)
            data = struct.pack("<5f", *numbers)
            self.layers.append(
                _Layer("MemoryData", [], ["model_info"], {0: 5}, (_NcnnWeight("", 5, Encoding(F32), data=data),))
            )
        self.results.append((forward(self), self.names.logits))
        self._split()

    # ---- Ops

    def embedding(self, name: str) -> str:
        rows, size = self.tensors[name].shape
        parameters = {0: size, 1: rows, 2: 0, 3: _checked(name, rows * size)}
        x = self._layer("Embed", [self.names.token], parameters, self._matrix(name, rows * size))
        return self.shaped(x, (size,))

    def linear(self, x: str, name: str, *, stored: str = "out,in", part: int | None = None) -> str:
        rows, columns = self.tensors[name].shape[-2:]
        swap = stored == "in,out"
        transform = TRANSPOSE if swap else None
        if part is not None:
            transform = part_of(part, swap)
        count = _checked(name, rows * columns)
        parameters = {0: columns if swap else rows, 1: 0, 2: count}
        return self._layer("InnerProduct", [x], parameters, self._matrix(name, count, transform))

    def constant(self, name: str, shape: tuple[int, ...], transform: Transform | None = None) -> str:
        return self._layer("MemoryData", [], _dims(shape), self._floats(name, transform))

    def layer_norm(self, x: str, name: str) -> str:
        weights = (self._floats(f"{name}.{end}") for end in ("weight", "bias"))
        return self._layer("LayerNorm", [x], {0: self.architecture.n_embd, 1: LAYER_NORM_EPS, 2: 1}, *weights)

    def head_norm(self, x: str, name: str) -> str:
        size, heads = self.architecture.n_att, self.architecture.n_head or 1
        weights = (self._floats(f"{name}.{end}") for end in ("weight", "bias"))
        parameters = {0: heads, 1: size, 2: self.architecture.head_norm_eps, 3: 1}
        return self._layer("GroupNorm", [self.shaped(x, (size,))], parameters, *weights)

    def binary(self, kind: str, x: str, y: str) -> str:
        return self._layer("BinaryOp", [x, y], {0: BINARY[kind]})

    def scalar(self, kind: str, x: str, number: float) -> str:
        return self._layer("BinaryOp", [x], {0: BINARY[kind], 1: 1, 2: number})

    def unary(self, kind: str, x: str) -> str:
        if kind in OWN_LAYER:
            return self._layer(OWN_LAYER[kind], [x], {})
        return self._layer("UnaryOp", [x], {0: UNARY[kind]})

    def shaped(self, x: str, shape: tuple[int, ...]) -> str:
        return self._layer("Reshape", [x], _dims(shape))

    def product(self, x: str, y: str) -> str:
        return self._layer("MatMul", [x, y], {0: 0})

    def parts(self, x: str, count: int, size: int) -> list[str]:
        outputs = [self._name() for _ in range(count)]
        self.layers.append(_Layer("Slice", [x], outputs, {0: [size] * count, 1: 0}))
        return outputs

    def state(self, layer: int, index: int) -> str:
        return self.names.of(self.names.state, layer, index)

    def keep(self, layer: int, index: int, value: str) -> None:
        self.results.append((value, self.names.of(self.names.kept, layer, index)))

    # ---- pieces

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _layer(
        self, kind: str, inputs: list[str], parameters: Mapping[int, int | float | list[int]], *weights: _NcnnWeight
    ) -> str:
        name = self._name()
        self.layers.append(_Layer(kind, list(inputs), [name], dict(parameters), weights))
        return name

    def _matrix(self, name: str, count: int, transform: Transform | None = None) -> _NcnnWeight:
        return _NcnnWeight(name, count, Encoding(self.kind, transform=transform), flagged=True)

    def _floats(self, name: str, transform: Transform | None = None) -> _NcnnWeight:
        return _NcnnWeight(name, self.tensors[name].numel, Encoding(F32, transform=transform))

    def _split(self) -> None:
        """Give every blob one reader, and the results their names."""
        readers: dict[str, list[tuple[_Layer, int]]] = {}
        for layer in self.layers:
            for at, name in enumerate(layer.inputs):
                readers.setdefault(name, []).append((layer, at))
        results: dict[str, list[str]] = {}
        for value, name in self.results:
            results.setdefault(value, []).append(name)
        layers: list[_Layer] = []
        for layer in self.layers:
            layers.append(layer)
            for at, name in enumerate(layer.outputs):
                own, named = readers.get(name, []), results.get(name, [])
                if len(own) + len(named) == 1:
                    if named:
                        layer.outputs[at] = named[0]
                elif own or named:
                    copies = [f"{name}_{number}" for number in range(len(own))]
                    layers.append(_Layer("Split", [name], [*copies, *named]))
                    for (reader, place), copy in zip(own, copies, strict=True):
                        reader.inputs[place] = copy
        self.layers = layers


def _dims(shape: tuple[int, ...]) -> dict[int, int | float | list[int]]:
    """Parameters of Input, MemoryData and Reshape: 0 is w, 1 is h, 2 is c."""
    return dict(enumerate(reversed(shape)))


def _checked(name: str, count: int) -> int:
    if count > LARGEST:
        raise WorkerError(f"{name} has {count} values; ncnn counts to {LARGEST}")
    return count


def _parameter(key: int, value: int | float | list[int]) -> str:
    if isinstance(value, list):
        return f"{-23300 - key}={len(value)},{','.join(map(str, value))}"
    return f"{key}={value:.9e}" if isinstance(value, float) else f"{key}={value}"


def _line(layer: _Layer, number: int) -> str:
    head = f"{layer.kind:<16} {number:<8} {len(layer.inputs)} {len(layer.outputs)}"
    parameters = (_parameter(key, value) for key, value in layer.parameters.items())
    return " ".join([head, *layer.inputs, *layer.outputs, *parameters]) + "\n"


def layouts(architecture: Architecture, tensors: Mapping[str, TensorInfo], kind: int) -> dict[str, Layout]:
    """Each file of the folder; `kind` is the type of matrices. Raises WorkerError."""
    graph = _NcnnGraph(architecture, tensors, kind)
    graph.build()
    blobs = sum(len(layer.outputs) for layer in graph.layers)
    lines = [f"{MAGIC}\n{len(graph.layers)} {blobs}\n"]
    lines += [_line(layer, number) for number, layer in enumerate(graph.layers)]
    build, used = LayoutBuilder(), set()
    for weight in (weight for layer in graph.layers for weight in layer.weights):
        used.add(weight.source)
        if weight.flagged:
            build.literal(struct.pack("<I", FLAGS[kind]))
        if weight.data:
            build.literal(weight.data)
            continue
        build.slot(weight.source, weight.count, weight.encoding)
        build.literal(bytes(-size_of(weight.encoding.kind or F32, weight.count) % 4))
    if left := [name for name in tensors if name not in used and name in architecture.extra]:
        build.remark(f"ncnn: no place for {', '.join(left[:4])}; left out")
    text = config(architecture, "fp32" if kind == F32 else "fp16", ncnn_impl_version=IMPLEMENTATION)
    return {PARAM: literal_layout("".join(lines).encode()), CONFIG: literal_layout(text), BIN: build.done()}


@dataclass(frozen=True)
class Ncnn(FolderFormat):
    """The folder. kind: F32 or F16, of matrices."""

    kind: int = F32

    def layouts(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, Layout]:
        """Where every tensor goes, for each file of the folder."""
        return layouts(architecture, tensors, self.kind)


_F32 = Ncnn(
    name="ncnn-f32",
    suffix="-ncnn-FP32",
    versions=VERSIONS,
    consumer="ncnn",
    family="ncnn",
    runner=f"{__package__}.run",
    card=f"{__package__}.card",
    limits=Limits(logits=1e-3, perplexity=1e-3),
    requires=("ncnn",),
)
FORMATS = (
    _F32,
    replace(
        _F32,
        name="ncnn-f16",
        suffix="-ncnn-FP16",
        limits=Limits(logits=0.02, perplexity=0.002),
        kind=F16,
        half=BOUNDED,  # where the processor can, as phones' do
    ),
)
