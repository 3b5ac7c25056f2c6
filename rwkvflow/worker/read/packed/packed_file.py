"""What a `.prefab` and a `.fr` hold: the numbers of their model, and their tensors with types and shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.packed.values import Blob, Packed, cbor, msgpack
from rwkvflow.worker.read.rawfile import RawFile

HEAD: Final = 16  # bytes that tell the kind
_INFO: Final = (("n_vocab", "num_vocab"), ("n_embd", "num_emb"), ("n_layer", "num_layer"), ("n_ffn", "num_hidden"))
_NUMBERS: Final = ("n_layer", "n_embd", "n_att", "n_ffn", "n_head")
_TYPES: Final = {1: "u8", 2: "f16", 4: "f32"}


@dataclass(frozen=True)
class PackedTensor:
    """A tensor; `nbytes` with what belongs to its blocks.

    data  where its values are: one place; of an embedding in a `.fr` one for each row; of int8 the bytes and the ends
          of the blocks, of nf4 the levels, the values and the scales
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    data: tuple[Blob, ...] = ()


@dataclass
class PackedIndex:
    """`kind` is "prefab" or "faster-rwkv"; `architecture` holds what the file says of its model."""

    kind: str
    architecture: dict[str, Any]
    tensors: list[PackedTensor] = field(default_factory=list)


def kind_of(head: bytes) -> str | None:
    """Which of the two begins so; None for everything else."""
    if head.startswith(b"\xa5gcontext"):
        return "prefab"
    return "faster-rwkv" if head[:1] and head[0] >> 4 == 8 and head[1:14] == b"\xacembd_weights" else None


def read_packed_index(path: Path | str) -> PackedIndex:
    """Reads all but the data. Raises WorkerError for what is neither, or a broken one."""
    with RawFile(path) as file:
        return read_packed_open(file)


def read_packed_open(file: RawFile) -> PackedIndex:
    """The index of an open file. Raises what read_packed_index raises."""
    kind = kind_of(file.bytes_at(0, min(file.size, HEAD)))
    if kind is None:
        raise WorkerError(f"{file.name}: neither a .prefab nor a .fr")
    content = Packed(file).whole(cbor if kind == "prefab" else msgpack)
    read: Callable[[dict[str, Any]], PackedIndex] = _prefab if kind == "prefab" else _faster_rwkv
    try:
        return read(content)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        raise WorkerError(f"{file.name}: not as a {kind} is: {type(error).__name__}: {error}") from None


def _prefab(content: dict[str, Any]) -> PackedIndex:
    info = content["info"]
    architecture = {"version": str(info["version"]).removeprefix("V")}
    architecture |= {ours: info[theirs] for ours, theirs in _INFO}
    heads = {} if architecture["version"] == "4" else {"n_head": info["num_head"]}
    return PackedIndex("prefab", architecture | heads, list(_fields(content["tensor"], "")))


def _fields(found: Any, name: str) -> Iterator[PackedTensor]:
    """The tensors of a struct, each by the way to it; a matrix in blocks is one tensor."""
    if isinstance(found, list):
        for index, item in enumerate(found):
            yield from _fields(item, f"{name}.{index}")
        return
    if "shape" in found and isinstance(found.get("data"), Blob):
        shape, size = _shape(found), found["data"].size
        yield PackedTensor(name, _TYPES[size // math.prod(shape)], shape, size, (found["data"],))
        return
    for kind, width, order in (("Int8", 1, "wm"), ("Fp4", 2, "qwm")):
        if kind in found:
            parts = found[kind]
            shape = _shape(parts["w"])
            size = sum(part["data"].size for part in parts.values())
            data = tuple(parts[key]["data"] for key in order)
            yield PackedTensor(name, "int8" if width == 1 else "nf4", (*shape[:-1], shape[-1] * width), size, data)
            return
    for key, item in found.items():
        yield from _fields(item, name if key == "Fp16" else f"{name}.{key}".lstrip("."))


def _shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    """Its sizes as a checkpoint has them: the last dim stands first in the file, and always four do."""
    sizes = [_count(size) for size in tensor["shape"]]
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(reversed(sizes))


def _count(size: object) -> int:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{size!r} is no size")
    return size


def _faster_rwkv(content: dict[str, Any]) -> PackedIndex:
    architecture: dict[str, Any] = {"version": content["version"], "n_vocab": len(content["embd_weights"])}
    architecture |= {key: content[key] for key in _NUMBERS if key in content}
    rows = [_tensor("emb.weight", row) for row in content["embd_weights"]]
    first = rows[0]
    if any((row.type, row.shape) != (first.type, first.shape) for row in rows):
        raise ValueError("rows of the embedding differ in type or size")
    data = tuple(blob for row in rows for blob in row.data)
    whole = PackedTensor(first.name, first.type, (len(rows), *first.shape), sum(row.nbytes for row in rows), data)
    weights = [_tensor(name, tensor) for name, tensor in content["weights"].items()]
    return PackedIndex("faster-rwkv", architecture, [whole, *weights])


def _tensor(name: str, tensor: Mapping[str, Any]) -> PackedTensor:
    kind = str(tensor["dtype"]).replace("torch.float", "f").replace("torch.bfloat", "bf")
    return PackedTensor(name, kind, tuple(map(_count, tensor["shape"])), tensor["data"].size, (tensor["data"],))
