"""`onnx-*`: a folder with one token's forward pass as an ONNX graph, its weights beside it as external data.

    model.onnx           the graph; small constants are in it
    model.onnx.data      the weights, each aligned
    model.onnx.config    lines "key: value" (faster-rwkv reads them)

Inputs: `input_id` (int64, a scalar), then `state_{layer}_{j}`; outputs: `output_state_{layer}_{j}`, then `logits`, in
the order in which faster-rwkv passes and takes them. In `onnx-f16` matrices are F16 and cast where they are used;
everything else, states and logits too, is float32. Version 4's states with j = 3 begin with -1e30, all others with 0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rwkvflow.worker.formats.base import FolderFormat, Limits
from rwkvflow.worker.model.versions import LAYER_NORM_EPS
from rwkvflow.worker.model.weight_types import F16, F32, size_of
from rwkvflow.worker.write import onnx_writer
from rwkvflow.worker.write.graph import VERSIONS, Ops, config, forward, part_of, states
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Transform, literal_layout
from rwkvflow.worker.write.onnx_writer import FLOAT, FLOAT16, INT64, Node, Tensor, Value

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

MODEL, DATA, CONFIG = "model.onnx", "model.onnx.data", "model.onnx.config"
ALIGNMENT, PAGE = 64, 4096  # of weights, and of those of a page or more: readers map them
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max"}
UNARY = {"exp": "Exp", "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "sqrt": "Sqrt", "neg": "Neg"}


@dataclass(frozen=True)
class _OnnxWeight:
    name: str  # in the graph
    source: str
    shape: tuple[int, ...]
    encoding: Encoding

    @property
    def kind(self) -> int:
        return self.encoding.kind or F32

    @property
    def size(self) -> int:
        return size_of(self.kind, math.prod(self.shape))


class _OnnxGraph(Ops):
    """Vectors are [1, n] here, for Gemm."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, TensorInfo], kind: int) -> None:
        super().__init__(architecture, tensors)
        self.kind = kind  # of matrices
        self.nodes: list[Node] = []
        self.weights: dict[str, _OnnxWeight] = {}
        self.small: dict[str, Tensor] = {}
        self.inputs = [Value("input_id", INT64, ())]
        self.outputs: list[Value] = []
        self._shapes = {(state.layer, state.index): state.shape for state in states(architecture)}
        self._read: dict[tuple[int, int], str] = {}

    def build(self) -> None:
        """The whole graph."""
        self.inputs += [Value(f"state_{layer}_{index}", FLOAT, s) for (layer, index), s in self._shapes.items()]
        self.outputs += [Value(f"output_{value.name}", FLOAT, value.shape) for value in self.inputs[1:]]
        size = self.architecture.n_vocab
        self._node("Reshape", forward(self), self._shape((size,)), out="logits")
        self.outputs.append(Value("logits", FLOAT, (size,)))

    # ---- Ops

    def embedding(self, name: str) -> str:
        row = self._node("Gather", self._weight(name, self.kind, tuple(self.tensors[name].shape)), "input_id")
        return self.shaped(row if self.kind == F32 else self._node("Cast", row, to=FLOAT), (self.architecture.n_embd,))

    def linear(self, x: str, name: str, *, stored: str = "out,in", part: int | None = None) -> str:
        shape = tuple(self.tensors[name].shape)
        transform = None if part is None else part_of(part)
        weight = self._weight(name, self.kind, shape[-2:], transform, "" if part is None else f".{part}")
        if self.kind != F32:
            weight = self._node("Cast", weight, to=FLOAT)
        return self._node("Gemm", x, weight, transB=int(stored == "out,in"))

    def constant(self, name: str, shape: tuple[int, ...], transform: Transform | None = None) -> str:
        return self._weight(name, F32, (1, *shape) if len(shape) == 1 else shape, transform)

    def layer_norm(self, x: str, name: str) -> str:
        weight, bias = (self._weight(f"{name}.{end}", F32, (self.architecture.n_embd,)) for end in ("weight", "bias"))
        return self._node("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)

    def head_norm(self, x: str, name: str) -> str:
        size = self.architecture.head_size or 1
        ones = self._small("ones", FLOAT, (size,), struct.pack(f"<{size}f", *[1.0] * size))
        x = self._node("LayerNormalization", x, ones, axis=-1, epsilon=self.architecture.head_norm_eps)
        x = self.shaped(x, (self.architecture.n_att,))
        x = self._node("Mul", x, self.vector(name + ".weight"))
        return self._node("Add", x, self.vector(name + ".bias"))

    def binary(self, kind: str, x: str, y: str) -> str:
        return self._node(BINARY[kind], x, y)

    def scalar(self, kind: str, x: str, number: float) -> str:
        value = self._small(f"number_{kind}_{number:g}", FLOAT, (), struct.pack("<f", number))
        return self._node(BINARY[kind], x, value)

    def unary(self, kind: str, x: str) -> str:
        return self._node(UNARY[kind], x)

    def shaped(self, x: str, shape: tuple[int, ...]) -> str:
        shape = (1, *shape) if len(shape) == 1 else shape
        return self._node("Reshape", x, self._shape(shape))

    def product(self, x: str, y: str) -> str:
        return self._node("MatMul", x, y)

    def parts(self, x: str, count: int, size: int) -> list[str]:
        outputs = tuple(f"v{len(self.nodes)}_{index}" for index in range(count))
        sizes = self._ints(f"parts_{count}x{size}", (size,) * count)
        self.nodes.append(Node("Split", (x, sizes), outputs, {"axis": 1}))
        return list(outputs)

    def state(self, layer: int, index: int) -> str:
        found = self._read.get((layer, index))
        if found is None:
            name, shape = f"state_{layer}_{index}", self._shapes[layer, index]
            found = self._read[layer, index] = self.shaped(name, shape) if len(shape) == 1 else name
        return found

    def keep(self, layer: int, index: int, value: str) -> None:
        name, shape = f"output_state_{layer}_{index}", self._shapes[layer, index]
        self._node("Reshape", value, self._shape(shape), out=name)

    # ---- pieces

    def _node(self, kind: str, *inputs: str, out: str = "", **attributes: int | float) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, (name,), attributes))
        return name

    def _weight(
        self, name: str, kind: int, shape: tuple[int, ...], transform: Transform | None = None, end: str = ""
    ) -> str:
        self.weights[name + end] = _OnnxWeight(name + end, name, shape, Encoding(kind, transform=transform))
        return name + end

    def _small(self, name: str, kind: int, shape: tuple[int, ...], data: bytes) -> str:
        self.small[name] = Tensor(name, kind, shape, data)
        return name

    def _shape(self, shape: tuple[int, ...]) -> str:
        return self._ints("shape_" + "x".join(map(str, shape)), shape)

    def _ints(self, name: str, values: tuple[int, ...]) -> str:
        return self._small(name, INT64, (len(values),), struct.pack(f"<{len(values)}q", *values))


def layouts(architecture: Architecture, tensors: Mapping[str, TensorInfo], kind: int) -> dict[str, Layout]:
    """Each file of the folder; `kind` is the type of matrices."""
    graph = _OnnxGraph(architecture, tensors, kind)
    graph.build()
    build = LayoutBuilder()
    order = {name: index for index, name in enumerate(tensors)}
    placed: dict[str, Tensor] = {}
    for weight in sorted(graph.weights.values(), key=lambda weight: order[weight.source]):  # in the order of reading
        build.literal(bytes(-build.size % (PAGE if weight.size >= PAGE else ALIGNMENT)))
        placed[weight.name] = Tensor(
            weight.name,
            FLOAT if weight.kind == F32 else FLOAT16,
            weight.shape,
            location=DATA,
            offset=build.size,
            size=weight.size,
        )
        build.slot(weight.source, math.prod(weight.shape), weight.encoding)
    used = {weight.source for weight in graph.weights.values()}
    if left := [name for name in tensors if name not in used and name in architecture.extra]:
        build.remark(f"onnx: no place for {', '.join(left[:4])}; left out")
    content = onnx_writer.model(
        graph.nodes, [*graph.small.values(), *placed.values()], graph.inputs, graph.outputs, "rwkvflow"
    )
    text = config(architecture, "fp32" if kind == F32 else "fp16", onnx_impl_version=1)
    return {MODEL: literal_layout(content), CONFIG: literal_layout(text), DATA: build.done()}


@dataclass(frozen=True)
class Onnx(FolderFormat):
    """The folder. kind: F32 or F16, of matrices."""

    kind: int = F32

    def layouts(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, Layout]:
        """Where every tensor goes, for each file of the folder."""
        return layouts(architecture, tensors, self.kind)


_F32 = Onnx(
    name="onnx-f32",
    suffix="-ONNX-FP32",
    versions=VERSIONS,
    consumer="onnxruntime",
    family="onnx",
    runner=f"{__package__}.run",
    card=f"{__package__}.card",
    limits=Limits(logits=1e-3, perplexity=1e-3),
    requires=("onnx", "onnxruntime"),
)
FORMATS = (
    _F32,
    replace(_F32, name="onnx-f16", suffix="-ONNX-FP16", limits=Limits(logits=0.02, perplexity=0.002), kind=F16),
)
