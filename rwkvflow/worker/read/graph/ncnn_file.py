"""The index of an ncnn model: a text of layers (.param), and what their weights in the .bin beside it are.

The formats are those of ncnn's wiki (param-and-model-file-structure) and docs/developer-guide/operators.md. The .bin
says nothing of itself but a flag before some weights, so these can be listed only where each layer is one whose weights
are known here: those of RWKV's graphs.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.graph import GraphIndex, GraphTensor, beside
from rwkvflow.worker.read.rawfile import RawFile

MAGIC: Final = b"7767517"
SUFFIX: Final = ".param"
MOST: Final = 64 << 20  # bytes of a .param; one of a hundred layers has 200 kB
MOST_LAYERS: Final = 1 << 20
# The flag of a weight, and the bytes of its values; any other value means a table of 256 floats.
FLAGS: Final = {0: ("f32", 4), 0x01306B47: ("f16", 2), 0x000D4B38: ("i8", 1), 0x0002C056: ("f32", 4)}
WEIGHTLESS: Final = frozenset({
    *("BinaryOp", "Cast", "Clip", "Concat", "Crop", "Dropout", "Exp", "ExpandDims", "Flatten", "GELU", "Input", "Log"),
    *("MatMul", "Noop", "Packing", "Permute", "Power", "ReLU", "Reduction", "Reshape", "Sigmoid", "Slice", "Softmax"),
    *("Softplus", "Split", "Squeeze", "Swish", "TanH", "UnaryOp"),
})  # fmt: skip


@dataclass(frozen=True)
class _NcnnLayer:
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[int, str]

    def number(self, key: int) -> int:
        """A parameter; 0 where it is not given. Raises ValueError."""
        return int(self.parameters.get(key, "0"))


def read_ncnn_index(path: Path | str) -> GraphIndex:
    """Of NAME.param, with NAME.bin beside it. Weights are named by layers: type, and name, a number in files of ours.

    Raises WorkerError for what is no .param, and where the .bin is missing, or shorter or longer than all weights.
    """
    path = Path(path)
    with RawFile(path) as file:
        if file.size > MOST:
            raise WorkerError(f"{path.name}: {file.size} bytes are too many for a list of layers")
        layers = _layers(path.name, file.bytes_at(0, file.size))
    weights = beside(path, path.with_suffix(".bin").name)
    kinds = Counter(layer.kind for layer in layers)
    read = {name for layer in layers for name in layer.inputs}
    metadata = {
        "layers": ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
        "inputs": " ".join(name for layer in layers if layer.kind == "Input" for name in layer.outputs),
        "outputs": " ".join(name for layer in layers for name in layer.outputs if name not in read),
    }
    with RawFile(weights) as file:
        strange = sorted(kind for kind in kinds if kind not in WEIGHTLESS and kind not in _WEIGHTS)
        if strange:
            return GraphIndex(metadata, [], [weights], f"which weights {strange[0]} has is not known here")
        return GraphIndex(metadata, _weights(path.name, file, layers), [weights])


def _layers(name: str, content: bytes) -> list[_NcnnLayer]:
    lines = content.decode("utf-8", "replace").split("\n")
    if lines[0].strip().encode() != MAGIC:
        raise WorkerError(f"{name}: no .param of ncnn: it begins with {lines[0][:20]!r} and not with {MAGIC.decode()}")
    found = []
    for number, line in enumerate(lines[2:], 3):
        words = line.split()
        if not words:
            continue
        try:
            inputs, outputs = int(words[2]), int(words[3])
            blobs = words[4 : 4 + inputs + outputs]
            if inputs < 0 or outputs < 0 or len(blobs) != inputs + outputs:
                raise ValueError
            pairs = [word.split("=", 1) for word in words[4 + inputs + outputs :]]
            parameters = {int(key): value for key, value in pairs}
        except (ValueError, IndexError):
            raise WorkerError(f"{name}, line {number}: not a layer of ncnn: {line[:60]!r}") from None
        found.append(_NcnnLayer(words[0], words[1], tuple(blobs[:inputs]), tuple(blobs[inputs:]), parameters))
    said = lines[1].split() if len(lines) > 1 else []
    if len(said) != 2 or said[0] != str(len(found)):
        raise WorkerError(
            f"{name}: it says that it has {' '.join(said)[:40]!r} layers and blobs, and has {len(found)} layers. "
            "Download or copy it again."
        )
    return found


def _embed(layer: _NcnnLayer) -> list[tuple[str, tuple[int, ...], bool]]:
    size, rows = layer.number(0), layer.number(1)
    return [("weight", (rows, size), True), *([("bias", (size,), False)] if layer.number(2) else [])]


def _inner_product(layer: _NcnnLayer) -> list[tuple[str, tuple[int, ...], bool]]:
    rows, values = layer.number(0), layer.number(2)
    shape = (rows, values // rows) if rows and values % rows == 0 else (values,)
    return [("weight", shape, True), *([("bias", (rows,), False)] if layer.number(1) else [])]


def _norm(size: int, affine: int) -> list[tuple[str, tuple[int, ...], bool]]:
    return [("weight", (size,), False), ("bias", (size,), False)] if affine else []


def _memory_data(layer: _NcnnLayer) -> list[tuple[str, tuple[int, ...], bool]]:
    dims = [layer.number(key) for key in (2, 11, 1, 0)]  # c, d, h, w; 0 where there is none
    return [("data", tuple(size for size in dims if size), False)]


# What each kind of layer reads: (part, shape, whether a flag stands before it).
_WEIGHTS: Final = {
    "Embed": _embed,
    "InnerProduct": _inner_product,
    "LayerNorm": lambda layer: _norm(layer.number(0), int(layer.parameters.get(2, "1"))),
    "GroupNorm": lambda layer: _norm(layer.number(1), int(layer.parameters.get(3, "1"))),
    "MemoryData": _memory_data,
}


def _weights(name: str, file: RawFile, layers: list[_NcnnLayer]) -> list[GraphTensor]:
    tensors, at = [], 0
    for layer in layers:
        if layer.kind not in _WEIGHTS:
            continue
        try:
            parts = _WEIGHTS[layer.kind](layer)
        except ValueError:
            raise WorkerError(f"{name}: {layer.kind} {layer.name[:40]} has a size that is no number") from None
        for part, shape, flagged in parts:
            if any(size < 0 for size in shape):
                raise WorkerError(f"{name}: {layer.kind} {layer.name[:40]} has a negative size")
            kind, item, table = "f32", 4, 0
            if flagged:
                (flag,) = struct.unpack("<I", file.bytes_at(at, 4))
                at += 4
                kind, item = FLAGS.get(flag, ("table of 256", 1))
                table = 0 if flag in FLAGS else 1024
            size = math.prod(shape) * item + table
            if at + size > file.size:
                raise WorkerError(
                    f"{file.name}: the file is cut short: it has {file.size} bytes, and {layer.kind} {layer.name[:40]} "
                    f"ends at {at + size}. Download or copy it again."
                )
            tensors.append(GraphTensor(f"{layer.kind}.{layer.name}.{part}", kind, shape, size))
            at += size + (-size % 4 if flagged else 0)
    if at != file.size:
        raise WorkerError(
            f"{file.name}: it has {file.size} bytes, and the layers of {name} take {at}. Are they of one model?"
        )
    return tensors
