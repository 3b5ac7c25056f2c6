"""The ncnn graph: names of blobs by version, one reader a blob, and weights of the sizes that its layers ask for."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.ncnn.layout import BIN, CONFIG, PARAM, layouts
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.model.weight_types import F16, F32
from rwkvflow.worker.write.layout import Layout
from tests.helpers import checkpoints

# How often each layer stands in a model of two layers.
OPERATORS = {
    "4": "BinaryOp 72 Embed 1 InnerProduct 15 Input 11 LayerNorm 6 MemoryData 14 ReLU 2 Reshape 1 Sigmoid 4 "
    "Split 44 UnaryOp 8",
    "5.0": "BinaryOp 40 Embed 1 GroupNorm 2 InnerProduct 15 Input 7 LayerNorm 6 MatMul 4 MemoryData 14 ReLU 2 "
    "Reshape 9 Sigmoid 2 Split 22",
    "5.1": "BinaryOp 48 Embed 1 GroupNorm 2 InnerProduct 17 Input 7 LayerNorm 6 MatMul 4 MemoryData 16 ReLU 2 "
    "Reshape 9 Sigmoid 4 Split 24",
    "5.2": "BinaryOp 48 Embed 1 GroupNorm 2 InnerProduct 17 Input 7 LayerNorm 6 MatMul 4 MemoryData 16 ReLU 2 "
    "Reshape 9 Sigmoid 4 Split 24",
    "6": "BinaryOp 68 Embed 1 GroupNorm 2 InnerProduct 33 Input 7 LayerNorm 6 MatMul 4 MemoryData 21 ReLU 2 "
    "Reshape 11 Sigmoid 4 Slice 2 Split 20 UnaryOp 10",
    "7": "BinaryOp 78 Embed 1 GroupNorm 2 InnerProduct 27 Input 7 LayerNorm 6 MatMul 12 MemoryData 26 ReLU 2 "
    "Reshape 29 Sigmoid 7 Split 34 UnaryOp 8",
}


@dataclass
class Layer:
    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, str]

    def number(self, key: int) -> int:
        return int(self.parameters[key])


def folder(version: str, kind: int = F32, **sizes: Any) -> dict[str, Layout]:
    shapes = checkpoints.shapes(version, **sizes)
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    return layouts(architecture_of(tensors), tensors, kind)


def layers_of(layout: Layout) -> list[Layer]:
    """A .param, read without the writer."""
    ((_, content),) = layout.literals
    magic, counts, *lines = content.decode().splitlines()
    assert magic == "7767517"
    out = []
    for line in lines:
        kind, _, inputs, outputs, *rest = line.split()
        n, m = int(inputs), int(outputs)
        parameters = dict(item.split("=") for item in rest[n + m :])
        keys = {int(key): value for key, value in parameters.items()}
        out.append(Layer(kind, rest[:n], rest[n : n + m], keys))
    assert counts == f"{len(out)} {sum(len(layer.outputs) for layer in out)}"
    return out


@pytest.mark.parametrize("version", VERSIONS)
def test_operators(version: str) -> None:
    found = Counter(layer.kind for layer in layers_of(folder(version)[PARAM]))
    assert " ".join(f"{kind} {count}" for kind, count in sorted(found.items())) == OPERATORS[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_blob_is_written_once_and_read_once(version: str) -> None:
    written: set[str] = set()
    read: set[str] = set()
    for layer in layers_of(folder(version)[PARAM]):
        for name in layer.inputs:
            assert name in written, "layers come in the order of their work"
            assert name not in read
            read.add(name)
        for name in layer.outputs:
            assert name not in written
            written.add(name)
    left = written - read
    if version in ("6", "7"):
        assert left == {"logits", "model_info", *(f"state_{n}_out" for n in range(6))}
    else:
        states = 5 if version == "4" else 3
        assert left == {"output", *(f"output_state_{layer}_{j}" for layer in range(2) for j in range(states))}


def test_inputs() -> None:
    found = {
        version: {
            layer.outputs[0]: list(layer.parameters.items())
            for layer in layers_of(folder(version, layers=1, width=128)[PARAM])
            if layer.kind == "Input"
        }
        for version in ("4", "5.2", "7")
    }
    wide, heads = [(0, "128")], [(0, "64"), (1, "64"), (2, "2")]
    assert found["4"] == {"input_id": [(0, "1")], **{f"state_0_{j}": wide for j in range(5)}}
    assert found["5.2"] == {"input_id": [(0, "1")], "state_0_0": wide, "state_0_1": heads, "state_0_2": wide}
    assert found["7"] == {"token": [(0, "1")], "state_0_in": wide, "state_1_in": heads, "state_2_in": wide}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [F32, F16])
def test_the_bin_holds_what_the_layers_load(version: str, kind: int) -> None:
    """Walks the layers as ncnn does: each takes the next weights, with a flag or without."""
    made = folder(version, kind, layers=2, width=75, head_size=25, vocab=95, ffn=75)
    starts = {slot.offset: slot for slots in made[BIN].slots.values() for slot in slots}
    literals = dict(made[BIN].literals)
    flag = struct.pack("<I", 0x01306B47 if kind == F16 else 0)
    at = 0
    for layer in layers_of(made[PARAM]):
        sizes = {"LayerNorm": 0, "GroupNorm": 1}
        if layer.kind in ("Embed", "InnerProduct"):
            count = layer.number(3 if layer.kind == "Embed" else 2)
            assert literals[at][:4] == flag
            size = count * (2 if kind == F16 else 4)
            assert starts.pop(at + 4).size == size
            at += 4 + -(-size // 4) * 4
        elif layer.kind in sizes:
            for _ in range(2):
                size = 4 * layer.number(sizes[layer.kind])
                assert starts.pop(at).size == size
                at += size
        elif layer.kind == "MemoryData":
            size = 4 * layer.number(0) * int(layer.parameters.get(1, 1)) * int(layer.parameters.get(2, 1))
            if layer.outputs == ["model_info"]:
                assert struct.unpack("<5f", literals[at]) == (float(version), 2, 3, 25, 95)
            else:
                assert starts.pop(at).size == size
            at += size
    assert at == made[BIN].size
    assert not starts
    assert set(made[BIN].slots) == set(checkpoints.shapes(version))


def test_config() -> None:
    ((_, content),) = folder("5.1", F16, layers=2, width=128)[CONFIG].literals
    lines = content.decode().splitlines()
    assert lines[:4] == ["version: 5.1", "act_dtype: fp32", "weight_dtype: fp16", "head_size: 2"]
    assert lines[-1] == "ncnn_impl_version: 2"


def test_a_matrix_of_too_many_values_is_refused() -> None:
    with pytest.raises(WorkerError, match=r"emb.weight has 2200000000 values; ncnn counts to 2147483647"):
        folder("4", vocab=22_000, width=100_000)
