"""The ONNX graph: names, shapes and operators by version, offsets of weights, and the protobuf by itself."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.worker.formats.onnx.layout import CONFIG, DATA, MODEL, layouts
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.model.weight_types import F16, F32
from rwkvflow.worker.write import onnx_writer
from rwkvflow.worker.write.layout import Layout
from tests.helpers import checkpoints

Fields = dict[int, list[int | bytes]]

# How often each operator stands in a model of two layers.
OPERATORS = {
    "4": "Add 26 Div 2 Exp 8 Gather 1 Gemm 15 LayerNormalization 6 Max 4 Mul 28 Relu 2 Reshape 22 Sigmoid 4 Sub 12",
    "5.0": "Add 20 Gather 1 Gemm 15 LayerNormalization 8 MatMul 4 Mul 20 Relu 2 Reshape 20 Sigmoid 2 Sub 4",
    "5.1": "Add 22 Gather 1 Gemm 17 LayerNormalization 8 MatMul 4 Mul 26 Relu 2 Reshape 20 Sigmoid 4 Sub 4",
    "5.2": "Add 22 Gather 1 Gemm 17 LayerNormalization 8 MatMul 4 Mul 26 Relu 2 Reshape 20 Sigmoid 4 Sub 4",
    "6": "Add 38 Exp 4 Gather 1 Gemm 33 LayerNormalization 8 MatMul 4 Mul 30 Neg 2 Relu 2 Reshape 22 Sigmoid 4"
    " Split 2 Sub 4 Tanh 4",
    "7": "Add 36 Div 2 Exp 2 Gather 1 Gemm 27 LayerNormalization 8 MatMul 12 Max 2 Mul 37 Neg 2 Relu 2 Reshape"
    " 40 Sigmoid 7 Sqrt 2 Sub 5 Tanh 2",
}


def folder(version: str, kind: int = F32, dtype: str = "bf16", **sizes: Any) -> dict[str, Layout]:
    shapes = checkpoints.shapes(version, **sizes)
    tensors = {name: TensorInfo(name, dtype, shape) for name, shape in shapes.items()}
    return layouts(architecture_of(tensors), tensors, kind)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data: bytes) -> Fields:
    """A message by field number, read without the writer."""
    out: Fields = {}
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
            out.setdefault(key >> 3, []).append(value)
            continue
        if key & 7 == 5:
            size = 4
        else:
            assert key & 7 == 2
            size, at = varint(data, at)
        out.setdefault(key >> 3, []).append(data[at : at + size])
        at += size
    assert at == len(data)
    return out


def messages(parent: Fields, tag: int) -> Iterator[Fields]:
    for value in parent.get(tag, []):
        assert isinstance(value, bytes)
        yield fields(value)


def text(message: Fields, tag: int) -> str:
    value = message[tag][0]
    assert isinstance(value, bytes)
    return value.decode()


def graph_of(layout: Layout) -> Fields:
    ((_, content),) = layout.literals
    (graph,) = messages(fields(content), 7)
    return graph


def values(graph: Fields, tag: int) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name → (type, shape) of inputs (11) or outputs (12)."""
    out = {}
    for message in messages(graph, tag):
        ((kind,),) = [next(messages(message, 2))[1]]
        assert isinstance(kind, bytes)
        tensor = fields(kind)
        dims = next(messages(tensor, 2), {})
        shape = tuple(fields(dim)[1][0] for dim in dims.get(1, []) if isinstance(dim, bytes))
        out[text(message, 1)] = (tensor[1][0], shape)
    return out  # type: ignore[return-value]


@pytest.mark.parametrize("version", VERSIONS)
def test_operators(version: str) -> None:
    graph = graph_of(folder(version)[MODEL])
    found = Counter(text(node, 4) for node in messages(graph, 1))
    assert " ".join(f"{kind} {count}" for kind, count in sorted(found.items())) == OPERATORS[version]
    narrow = graph_of(folder(version, F16)[MODEL])
    assert Counter(text(node, 4) for node in messages(narrow, 1)) - found == Counter(Cast=found["Gemm"] + 1)


def test_inputs_and_outputs_of_version_4() -> None:
    graph = graph_of(folder("4", layers=1, width=128, vocab=320)[MODEL])
    wide = (1, (128,))
    assert list(values(graph, 11).items()) == [("input_id", (7, ())), *((f"state_0_{j}", wide) for j in range(5))]
    outputs = [(f"output_state_0_{j}", wide) for j in range(5)]
    assert list(values(graph, 12).items()) == [*outputs, ("logits", (1, (320,)))]


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6", "7"])
def test_inputs_and_outputs_of_later_versions(version: str) -> None:
    graph = graph_of(folder(version, layers=2, width=128, vocab=320)[MODEL])
    shapes = {0: (128,), 1: (2, 64, 64), 2: (128,)}
    own = [(f"state_{layer}_{j}", (1, shape)) for layer in range(2) for j, shape in shapes.items()]
    assert list(values(graph, 11).items()) == [("input_id", (7, ())), *own]
    assert list(values(graph, 12).items()) == [*((f"output_{n}", v) for n, v in own), ("logits", (1, (320,)))]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [F32, F16])
def test_weights_lie_where_the_graph_says(version: str, kind: int) -> None:
    """External data is aligned, without overlaps, and holds every tensor of the checkpoint."""
    made = folder(version, kind)
    spans = []
    types = {}
    for tensor in messages(graph_of(made[MODEL]), 5):
        if 14 not in tensor:
            continue
        entries = {text(entry, 1): text(entry, 2) for entry in messages(tensor, 13)}
        assert entries["location"] == DATA
        offset, length = int(entries["offset"]), int(entries["length"])
        assert offset % (4096 if length >= 4096 else 64) == 0
        spans.append((offset, length))
        types[text(tensor, 8)] = tensor[2][0]
        count = 1
        for dim in tensor[1]:
            count *= int(dim)
        assert length == count * (4 if tensor[2][0] == onnx_writer.FLOAT else 2)
    slots = [slot for own in made[DATA].slots.values() for slot in own]
    assert sorted(spans) == sorted((slot.offset, slot.size) for slot in slots)
    assert set(made[DATA].slots) == set(checkpoints.shapes(version))
    at = 0
    for offset, length in sorted([*spans, *((offset, len(data)) for offset, data in made[DATA].literals)]):
        assert offset == at
        at += length
    assert at == made[DATA].size
    narrow = {name for name, found in types.items() if found == onnx_writer.FLOAT16}
    assert ("emb.weight" in narrow) == ("blocks.1.ffn.key.weight" in narrow) == (kind == F16)
    assert not any(".ln" in name or name.rsplit(".", 1)[-1] == "time_decay" for name in narrow)


def test_the_data_are_in_the_order_of_reading() -> None:
    slots = folder("7")[DATA].slots
    first = [own[0].offset for own in slots.values()]
    assert first == sorted(first)
    assert list(slots) == list(checkpoints.shapes("7"))


def test_config() -> None:
    ((_, content),) = folder("5.0", F16, layers=2, width=128, vocab=320)[CONFIG].literals
    assert content.decode().splitlines() == [
        "version: 5",
        "act_dtype: fp32",
        "weight_dtype: fp16",
        "head_size: 2",
        "n_layer: 2",
        "n_embd: 128",
        "n_att: 128",
        "n_ffn: 512",
        "onnx_impl_version: 1",
    ]


# ---- the writer -----------------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_come_back(value: int) -> None:
    data = onnx_writer.varint(value)
    found, at = varint(data, 0)
    assert at == len(data) <= 10
    assert found == value % 2**64


def test_a_model_is_what_the_onnx_package_reads() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx_writer.Node("Gemm", ("x", "w"), ("y",), {"transB": 1, "alpha": 0.5})
    tensor = onnx_writer.Tensor("w", onnx_writer.FLOAT, (2, 3), struct.pack("<6f", *range(6)))
    x, y = (onnx_writer.Value(name, onnx_writer.FLOAT, shape) for name, shape in (("x", (1, 3)), ("y", (1, 2))))
    found = onnx.load_from_string(onnx_writer.model([node], [tensor], [x], [y], "someone"))
    onnx.checker.check_model(found, full_check=True)
    assert (found.ir_version, found.producer_name, found.opset_import[0].version) == (8, "someone", 17)
    (made,) = found.graph.node
    assert (made.op_type, list(made.input), list(made.output)) == ("Gemm", ["x", "w"], ["y"])
    assert {item.name: onnx.helper.get_attribute_value(item) for item in made.attribute} == {"alpha": 0.5, "transB": 1}
    assert onnx.numpy_helper.to_array(found.graph.initializer[0]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [dim.dim_value for dim in found.graph.output[0].type.tensor_type.shape.dim] == [1, 2]
    again = found.SerializeToString(deterministic=True)
    assert again == onnx_writer.model([node], [tensor], [x], [y], "someone")
