"""What a `.prefab`, a `.fr` and a `.pth` of the rwkv package hold under the author's names, shapes and values.

As far as these can be had again: halvings are undone, and so are exponentials; a matrix stands the author's way round;
rows that fill an embedding up are gone. Blocks and bytes stand for the values that their runtime makes of them. A `.fr`
and a `.pth` of the package have ln0 in their embedding, which stays there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.maps import prefab as maps
from rwkvflow.worker.maps.changes import EXP, EXP_NEGATIVE_EXP, NEGATIVE_EXP, ValueChange
from rwkvflow.worker.maps.prefab import Place
from rwkvflow.worker.model.versions import RESCALE_EVERY
from rwkvflow.worker.read.packed.packed_file import PackedIndex, PackedTensor
from rwkvflow.worker.read.rawfile import RawFile

Values = NDArray[np.float32]
ITEM: Final = {"f16": "<f2", "f32": "<f4"}
INT8, NF4 = 128, 64  # values of a block
MOST_LAYERS: Final = 600  # what is halved a hundred times is nothing in fp16
_TURNED: Final = ("key.weight", "value.weight", "receptance.weight", "gate.weight", "output.weight", "head.weight")


@dataclass(frozen=True)
class AuthorTensor:
    """A tensor as the author has it: `rows(start, count)` are rows of it, to the end where count is None.

    folded: it is the embedding after ln0.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int | None], Values]
    folded: bool = False


def author_tensors(file: RawFile, index: PackedIndex) -> dict[str, AuthorTensor]:
    """By the author's names. Raises WorkerError where a tensor is not as its kind of file has it."""
    found = {tensor.name: _stored(file, tensor) for tensor in index.tensors}
    try:
        return dict((_of_prefab if index.kind == "prefab" else _of_fr)(found, index.architecture))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"has no {error.args[0]!a}" if isinstance(error, KeyError) else str(error)
        raise WorkerError(f"{file.name}: not as a {index.kind} is: {what}") from None


# ---- where they stand ------------------------------------------------------------------------------------------------


def _of_prefab(found: Mapping[str, AuthorTensor], model: Mapping[str, Any]) -> Iterator[tuple[str, AuthorTensor]]:
    version = "5.2" if model["version"] == "5" else str(model["version"])
    for place in maps.GLOBAL[version]:
        yield from _of_place(found[".".join(place.path)], place, place.sources, 0, model)
    for layer in range(model["n_layer"]):
        for place in maps.LAYERS[version]:
            names, halvings = maps.sources(version, place, layer), maps.halvings(version, place, layer)
            if names == tuple(f"blocks.{layer}.{name}" for name in place.sources):  # else it stands there twice
                tensor = found[".".join(("layers", str(layer), *place.path))]
                yield from _of_place(tensor, place, names, halvings, model)


def _of_place(
    tensor: AuthorTensor, place: Place, names: tuple[str, ...], halvings: int, model: Mapping[str, Any]
) -> Iterator[tuple[str, AuthorTensor]]:
    kind = place.kind
    if kind == "stack":
        for part, name in enumerate(names):
            yield name, _reshaped(tensor, (math.prod(tensor.shape) // len(names),), part)
        return
    if kind == "wide" and "n_head" in model:
        tensor = _reshaped(tensor, (model["n_head"], math.prod(tensor.shape) // model["n_head"]))
    elif kind == "heads" and ".ln_x." in names[0]:
        tensor = _reshaped(tensor, (math.prod(tensor.shape),))
    elif kind == "swapped":
        tensor = _turned(tensor)
    elif kind in ("table", "padded"):
        tensor = _cut(tensor, model["n_vocab"])
    yield names[0], _changed(tensor, place.change, 2**halvings)


def of_package(name: str, found: Mapping[str, AuthorTensor], halved_every: object) -> dict[str, AuthorTensor]:
    """The author's tensors of a .pth that the rwkv package made, which is called `name`. Raises WorkerError."""
    decay = next((tensor.shape for key, tensor in found.items() if key.endswith(".time_decay")), ())
    if len(decay) < 2:
        version = "4" if decay else "7"
    elif any(".time_maa" in key for key in found):
        version = "6"
    elif not any(".gate." in key for key in found):
        version = "5"
    else:
        version = "5.1" if math.prod(decay[1:]) == 1 else "5.2"
    if version == "7":
        return dict(found)
    try:
        if not isinstance(halved_every, int) or not 0 <= halved_every < MOST_LAYERS:
            raise ValueError(f"{halved_every!r} is no number of layers")
        return dict(_as_package(_of_bytes(found), version, halved_every))
    except (ValueError, IndexError, KeyError) as error:
        raise WorkerError(f"{name}: not as the rwkv package writes it: {error}") from None


def _of_fr(found: Mapping[str, AuthorTensor], model: Mapping[str, Any]) -> Iterator[tuple[str, AuthorTensor]]:
    halved_every = RESCALE_EVERY if any(tensor.dtype == "f16" for tensor in found.values()) else 0
    return _as_package(found, str(model["version"]), halved_every)


def _as_package(
    found: Mapping[str, AuthorTensor], version: str, halved_every: int
) -> Iterator[tuple[str, AuthorTensor]]:
    """As ChatRWKV's converter makes them of versions 4 to 6, for its own files and those of faster-rwkv."""
    for name, tensor in found.items():
        if name == "emb.weight":
            yield name, replace(tensor, folded=True)
        elif name.endswith(".time_decay") and version == "6":
            yield name, _reshaped(tensor, (math.prod(tensor.shape),))
        elif name.endswith(".time_decay"):
            yield name, _changed(tensor, NEGATIVE_EXP if version == "4" else EXP_NEGATIVE_EXP, 1)
        elif name.endswith(".time_first"):  # from 5.1 on the author calls it time_faaaa, and takes it as it is
            yield name, _changed(tensor, EXP if version == "5" else None, 1)
        else:
            halved = halved_every and name.endswith(("att.output.weight", "ffn.value.weight"))
            layer = int(name.split(".")[1]) if halved else 0
            if not 0 <= layer < MOST_LAYERS:
                raise ValueError(f"{name!a} is no name of a tensor")
            turned = len(tensor.shape) == 2 and name.endswith(_TURNED)
            yield name, _changed(_turned(tensor) if turned else tensor, None, 2 ** (layer // (halved_every or 1)))


def _of_bytes(found: Mapping[str, AuthorTensor]) -> dict[str, AuthorTensor]:
    """With the values of matrices in bytes: (q + 0.5) rx ry + mx + my, x for columns and y for rows."""
    scales = ("_mx", "_rx", "_my", "_ry")
    made = {}
    for name, tensor in found.items():
        if tensor.dtype == "u8":
            mx, rx, my, ry = (found[name + scale] for scale in scales)
            sizes = tuple(math.prod(part.shape) for part in (mx, my, rx, ry))
            if sizes != tensor.shape[::-1] * 2:
                raise ValueError(f"{name!a} has scales of another size")
            made[name] = replace(tensor, rows=_rows_of_bytes(tensor, mx, rx, my, ry))
        elif not name.endswith(scales):
            made[name] = tensor
    return made


def _rows_of_bytes(
    tensor: AuthorTensor, mx: AuthorTensor, rx: AuthorTensor, my: AuthorTensor, ry: AuthorTensor
) -> Callable[[int, int | None], Values]:
    def rows(start: int, count: int | None) -> Values:
        low, scale = _whole(my).reshape(-1, 1), _whole(ry).reshape(-1, 1)
        part = slice(start, None if count is None else start + count)
        bytes_ = tensor.rows(start, count) + np.float32(0.5)
        return np.asarray(bytes_ * scale[part] * _whole(rx).reshape(-1) + low[part] + _whole(mx).reshape(-1))

    return rows


# ---- what is made of them --------------------------------------------------------------------------------------------


def _whole(tensor: AuthorTensor) -> Values:
    return tensor.rows(0, None)


def _later(tensor: AuthorTensor, shape: tuple[int, ...], made: Callable[[], Values]) -> AuthorTensor:
    """Another tensor whose values are made, as a whole, when rows are asked for."""

    def rows(start: int, count: int | None) -> Values:
        return made()[start : None if count is None else start + count]

    return replace(tensor, shape=shape, rows=rows)


def _reshaped(tensor: AuthorTensor, shape: tuple[int, ...], part: int = 0) -> AuthorTensor:
    size = math.prod(shape)
    if size * (part + 1) > math.prod(tensor.shape):
        raise ValueError(f"{list(tensor.shape)} is no {list(shape)}")
    return _later(tensor, shape, lambda: _whole(tensor).reshape(-1)[size * part : size * (part + 1)].reshape(shape))


def _turned(tensor: AuthorTensor) -> AuthorTensor:
    if len(tensor.shape) < 2:
        raise ValueError(f"{list(tensor.shape)} is the shape of a matrix")
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    return _later(tensor, shape, lambda: np.ascontiguousarray(np.swapaxes(_whole(tensor), -1, -2)))


def _cut(tensor: AuthorTensor, count: int) -> AuthorTensor:
    if not 0 < count <= tensor.shape[0]:
        raise ValueError(f"{list(tensor.shape)} has no {count} rows")

    def rows(start: int, wanted: int | None) -> Values:
        return tensor.rows(start, count - start if wanted is None else min(wanted, count - start))

    return replace(tensor, shape=(count, *tensor.shape[1:]), rows=rows)


def _changed(tensor: AuthorTensor, change: ValueChange | None, times: int) -> AuthorTensor:
    """With a change of its values undone, and halvings, which come to a division by `times`."""

    def rows(start: int, count: int | None) -> Values:
        found = tensor.rows(start, count) * np.float32(times)
        return found if change is None else np.asarray(change.back(found), np.float32)

    return tensor if change is None and times == 1 else replace(tensor, rows=rows)


# ---- how they are stored ---------------------------------------------------------------------------------------------


def _stored(file: RawFile, tensor: PackedTensor) -> AuthorTensor:
    """The tensor as the file has it. Raises WorkerError where its data is of another size."""
    count, width = math.prod(tensor.shape), math.prod(tensor.shape[1:])
    sizes = {
        "int8": (count, 4 * (count // INT8)),
        "nf4": (4 * 16, count // 2, 2 * (count // NF4)),
    }.get(tensor.type, (count * {"f16": 2, "f32": 4}.get(tensor.type, 0) // len(tensor.data),) * len(tensor.data))
    block = {"int8": INT8, "nf4": NF4}.get(tensor.type, 1)
    if tuple(blob.size for blob in tensor.data) != sizes or count % block or not all(sizes):
        raise WorkerError(f"{file.name}: {tensor.name} has not the data of {list(tensor.shape)} in {tensor.type}")

    def rows(start: int, wanted: int | None) -> Values:
        if not tensor.shape:
            return _values(file, tensor, 0, 1).reshape(())
        stop = tensor.shape[0] if wanted is None else min(tensor.shape[0], start + wanted)
        return _values(file, tensor, start * width, stop * width).reshape(stop - start, *tensor.shape[1:])

    return AuthorTensor(tensor.type, tensor.shape, rows)


def _values(file: RawFile, tensor: PackedTensor, start: int, stop: int) -> Values:
    """The values [start, stop) of a tensor, in its own order."""

    def taken(part: int, kind: str, start: int, stop: int) -> NDArray[Any]:
        item = np.dtype(kind).itemsize
        return np.frombuffer(file.bytes_at(tensor.data[part].offset + start * item, (stop - start) * item), kind)

    if tensor.type in ITEM:
        kind, each = ITEM[tensor.type], math.prod(tensor.shape) // len(tensor.data)  # of one place
        pieces = [
            taken(part, kind, max(start - part * each, 0), min(stop - part * each, each))
            for part in range(start // each, -(-stop // each))
        ]
        return np.concatenate(pieces).astype(np.float32)
    block = INT8 if tensor.type == "int8" else NF4
    first, last = start // block, -(-stop // block)
    if tensor.type == "int8":
        ends = taken(1, "<f2", 2 * first, 2 * last).reshape(-1, 2).astype(np.float32)
        share = taken(0, "u1", block * first, block * last).reshape(-1, block).astype(np.float32) / np.float32(255)
        values = ends[:, :1] + share * (ends[:, 1:] - ends[:, :1])
    else:
        pairs = taken(1, "u1", block // 2 * first, block // 2 * last)
        levels = taken(0, "<f4", 0, 16)[np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, block)]
        values = levels * taken(2, "<f2", first, last).astype(np.float32)[:, None]
    return np.asarray(values.reshape(-1)[start - block * first : stop - block * first], np.float32)
