"""`prefab-*`: PyPI's cbor2 reads it, and our own forward pass runs what it holds, in fp16 as web-rwkv does.

No package index has a web-rwkv that loads such files. So every field is compared with the checkpoint: each value of a
quantized matrix with what its block may be off by, and the scales of blocks bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.prefab.layout import Prefab
from rwkvflow.worker.formats.runner import IN_HALF, Task, answer
from rwkvflow.worker.maps import prefab as maps
from rwkvflow.worker.maps.changes import EXP_NEGATIVE_EXP, NEGATIVE_EXP, ValueChange
from rwkvflow.worker.maps.prefab import Place
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.rounding import rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held, swap
from rwkvflow.worker.smoke.questions import Answers, Questions

Values = NDArray[Any]
BLOCK = {"int8": 128, "nf4": 64}
ENUM = {"": "Fp16", "int8": "Int8", "nf4": "Fp4"}
ITEM = {"<f2": "f16", "<f4": "f32"}
#: Of QLoRA (bitsandbytes, create_normal_map), which web-rwkv has as well.
NORMAL = np.array(
    [
        *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
    ],
    np.float32,
)
HALF_STEP = np.diff(NORMAL) / 2
LOGARITHM = 2e-6  # of values that are an exponential, which libraries round one way or the other


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError when cbor2 cannot read the file, or it does not hold what the checkpoint holds."""
    if not isinstance(task.format, Prefab):
        raise WorkerError(f"{task.format.name} is no format of prefabs")
    with task.open_source() as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
        content = _read(task.artifact)
        _compare_numbers(content, architecture)
        artifact = PrefabTensors(content.get("tensor"), fields(checkpoint, architecture, task.format.blocks))
        first: dict[str, Held] = {}
        again: dict[str, Held] = {}  # of layer 0 of version 7, which has three tensors twice
        for field in artifact.fields.values():
            (again if field.source in first else first)[field.source] = field.held
        for some in (first, again):
            compare_held(checkpoint, artifact.only(some), some)
        view = AsCheckpoint(artifact, first, checkpoint.tensors)
        answers = answer(Reference(view, task.group_norm_eps, architecture=architecture, in_half=True), questions)
    return replace(answers, note=f"cbor2 read it, its tensors were compared with the checkpoint's, and {IN_HALF}")


def _read(path: Path) -> dict[str, Any]:
    import cbor2  # type: ignore[import-not-found, import-untyped, unused-ignore]

    try:
        with path.open("rb") as file:
            content = cbor2.load(file)
            if file.read(1):
                raise WorkerError("bytes follow the end of its CBOR")
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise WorkerError(f"cbor2 cannot read it: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise WorkerError(f"it is a {type(content).__name__} in CBOR, and web-rwkv's model is a map")
    return content


def _compare_numbers(content: Mapping[str, Any], architecture: Architecture) -> None:
    version, lora = architecture.version, architecture.lora
    custom: Any = "None"
    if version == "6":
        custom = {"V6": {"time_mix": lora["maa"], "time_decay": lora["decay"]}}
    elif version == "7":
        custom = {"V7": {"w": lora["w"], "a": lora["a"], "g": lora["g"], "v": lora.get("v", lora["a"])}}
    expected: dict[str, Any] = {
        "context": [],
        "info": {
            "version": f"V{version[0]}",
            "num_layer": architecture.n_layer,
            "num_emb": architecture.n_embd,
            "num_hidden": architecture.n_ffn,
            "num_vocab": architecture.n_vocab,
            "num_head": architecture.n_head or 1,
            "custom": custom,
        },
        "rescale": 1024 if version == "7" else 6,
        "sep": 1024,
    }
    for key, value in expected.items():
        if content.get(key) != value:
            raise WorkerError(f"{key} is {content.get(key)!r} in the artifact; {value!r} is expected")
    if set(content) != {*expected, "tensor"}:
        raise WorkerError(f"its fields are {', '.join(map(str, content))}")


# ---- fields --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One tensor of the struct that holds one of the checkpoint: all of it, or of a stack the part of this number.

    source    the checkpoint's name
    sizes     of the whole, the last dim first
    scales    of the blocks of a quantized matrix, by the checkpoint: fp16 values; none of another
    """

    source: str
    held: Held
    sizes: tuple[int, ...]
    part: int | None = None
    scales: Callable[[], Values] = lambda: np.empty(0, np.float32)


def fields(checkpoint: Checkpoint, architecture: Architecture, blocks: str) -> Iterator[tuple[str, Field]]:
    """The dotted path of each tensor that the file should have, with what it holds."""
    version = architecture.version
    for place in maps.GLOBAL[version]:
        yield from _of(".".join(place.path), place, place.sources, 0, checkpoint, architecture, blocks)
    for layer in range(architecture.n_layer):
        for place in maps.LAYERS[version]:
            path = ".".join(("layers", str(layer), *place.path))
            sources, halvings = maps.sources(version, place, layer), maps.halvings(version, place, layer)
            yield from _of(path, place, sources, halvings, checkpoint, architecture, blocks)


def _of(
    path: str,
    place: Place,
    sources: tuple[str, ...],
    halvings: int,
    checkpoint: Checkpoint,
    architecture: Architecture,
    blocks: str,
) -> Iterator[tuple[str, Field]]:
    for part, source in enumerate(sources):
        shape = tuple(checkpoint.tensors[source].shape)
        count = math.prod(shape)
        name = path if len(sources) == 1 else f"{path}.{part}"
        if place.kind == "stack":
            held = Held(name, "f16", (count,), np.ravel, np.ravel)
            yield path, Field(source, held, (count, 1, len(sources), 1), part)
        elif place.kind == "vector":
            yield path, Field(source, Held(name, "f16", (count,), np.ravel, np.ravel), (count, 1, 1, 1))
        elif place.kind == "heads":
            heads = (architecture.n_head or 1, count // (architecture.n_head or 1))
            yield path, Field(source, Held(name, "f16", heads, _reshaped(heads), np.ravel), (*heads[::-1], 1, 1))
        elif place.kind == "wide":
            width = architecture.n_embd
            held = _wide(name, width // count, width, place.change)
            yield path, Field(source, held, (width, 1, 1, 1))
        elif place.kind == "swapped":
            turned = (*shape[:-2], shape[-1], shape[-2])
            yield path, Field(source, Held(name, "f16", turned, swap, swap), (*turned[::-1], 1, 1)[:4])
        elif place.kind == "layer" and blocks:
            yield path, _quantized(name, source, shape, halvings, checkpoint, blocks)
        else:
            change, back = _halved(halvings)
            rows = -(-shape[0] // 8) * 8 if place.kind in ("table", "padded") else shape[0]
            yield path, Field(source, Held(name, "f16", shape, change, back), (shape[1], rows, 1, 1))


def _reshaped(shape: tuple[int, ...]) -> Callable[[Values], Values]:
    return lambda values: values.reshape(shape)


def _halved(halvings: int) -> tuple[Callable[[Values], Values] | None, Callable[[Values], Values] | None]:
    if not halvings:
        return None, None
    factor = np.float32(2**halvings)
    return (lambda values: rounded("f16", values) / factor), (lambda values: values * factor)


def _wide(name: str, times: int, width: int, change: ValueChange | None) -> Held:
    formulas = {NEGATIVE_EXP: lambda x: -np.exp(x), EXP_NEGATIVE_EXP: lambda x: np.exp(-np.exp(x))}

    def forth(values: Values) -> Values:
        half = rounded("f16", values).reshape(-1).astype(np.float64)
        return np.repeat(half if change is None else formulas[change](half), times).astype(np.float32)

    def back(values: Values) -> Values:
        once = np.ascontiguousarray(values[::times])
        return once if change is None else np.asarray(change.back(once))

    return Held(name, "f32", (width,), forth, back, tolerance=0.0 if change is None else LOGARITHM)


def _quantized(
    name: str, source: str, shape: tuple[int, ...], halvings: int, checkpoint: Checkpoint, blocks: str
) -> Field:
    factor = np.float32(2**halvings)

    def in_half(values: Values) -> Values:
        return rounded("f16", rounded("f16", values) / factor)

    def off(values: Values) -> Values:
        groups = values.reshape(-1, BLOCK[blocks])
        if blocks == "int8":
            step = (groups.max(axis=1) - groups.min(axis=1)) / np.float32(2 * 255)
            allowed = np.broadcast_to(step[:, None], groups.shape)
        else:
            largest = np.abs(groups).max(axis=1)[:, None]
            share = np.divide(groups, largest, out=np.zeros_like(groups), where=largest > 0)
            between = np.clip(np.searchsorted(NORMAL, share) - 1, 0, len(HALF_STEP) - 1)
            allowed = HALF_STEP[between] * largest
        # A value between two levels may be rounded either way where float32 cannot tell.
        return np.asarray(allowed * np.float32(1.0001) + np.abs(groups).max() * np.float32(1e-6)).reshape(values.shape)

    def scales() -> Values:
        groups = in_half(checkpoint.float32(source)).reshape(-1, BLOCK[blocks])
        if blocks == "int8":
            return np.stack([groups.min(axis=1), groups.max(axis=1)], axis=1).reshape(-1)
        return np.asarray(np.abs(groups).max(axis=1))

    held = Held(name, blocks, shape, in_half, lambda values: values * factor, bound=off)
    return Field(source, held, (*shape[::-1], 1, 1), scales=scales)


class PrefabTensors:
    """The tensors of a prefab in memory, one for each of the checkpoint's that a field holds."""

    def __init__(self, content: Any, wanted: Iterator[tuple[str, Field]]) -> None:
        """Raises WorkerError where a field is missing, of another shape or type, or none that is known."""
        try:
            found = dict(_leaves(content, ""))
        except RecursionError:  # CBOR can refer to itself
            raise WorkerError("its structs are nested without end") from None
        self.fields: dict[str, Field] = {}
        self._values: dict[str, Callable[[], Values]] = {}
        taken = set()
        for path, field in wanted:
            if path not in found:
                raise WorkerError(f"the artifact lacks {path!a}")
            taken.add(path)
            self.fields[field.held.name] = field
            self._values[field.held.name] = _values(path, found[path], field)
        if added := sorted(found.keys() - taken):
            raise WorkerError(f"the artifact has {added[0]!a} besides")
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, field.held.dtype, field.held.shape) for name, field in self.fields.items()
        }

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        values = self._values[name]()
        return values[start_row : len(values) if rows is None else start_row + rows].astype("<f4")

    def only(self, wanted: Mapping[str, Held]) -> PrefabTensors:
        """The same, of which some are asked for."""
        names = {held.name for held in wanted.values()}
        other = object.__new__(PrefabTensors)
        other.fields, other._values = self.fields, self._values
        other.tensors = {name: info for name, info in self.tensors.items() if name in names}
        return other


def _leaves(content: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Tensors and matrices of nested structs, by dotted path."""
    if isinstance(content, dict):
        if content.keys() == {"shape", "data"} or (len(content) == 1 and content.keys() <= set(ENUM.values())):
            yield path, content
            return
        inner = list(content.items())
    elif isinstance(content, list):
        inner = list(enumerate(content))
    else:
        raise WorkerError(f"{path or 'tensor'} is no struct of web-rwkv's model: {type(content).__name__}")
    for key, value in inner:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _values(path: str, leaf: Mapping[str, Any], field: Field) -> Callable[[], Values]:
    held = field.held
    quantized = held.dtype if held.dtype in BLOCK else ""
    if leaf.keys() != {"shape", "data"}:
        ((variant, leaf),) = leaf.items()
        if variant != ENUM[quantized]:
            raise WorkerError(f"{path} is {variant} in the artifact; {ENUM[quantized]} is expected")
    if quantized:
        return _blocks(path, leaf, field)
    kind = next(code for code, name in ITEM.items() if name == held.dtype)
    whole = _tensor(path, leaf, field.sizes, kind)
    rows = whole.reshape(field.sizes[::-1]) if field.part is None else whole.reshape(field.sizes[2], -1)[field.part]
    values = rows.reshape(-1)[: math.prod(held.shape)].reshape(held.shape)
    if whole.size > values.size and field.part is None and whole[values.size :].any():
        raise WorkerError(f"{path} has values in the rows that fill it up")
    return lambda: values


def _tensor(path: str, leaf: Any, sizes: tuple[int, ...], kind: str) -> Values:
    try:
        shape, data = list(leaf["shape"]), bytes(leaf["data"])
        values = np.frombuffer(data, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerError(f"{path} is no tensor of web-rwkv: {error}") from None
    if shape != list(sizes) or len(values) != math.prod(sizes):
        raise WorkerError(
            f"{path} is of shape {shape} with {len(data)} bytes in the artifact; {list(sizes)} is expected"
        )
    return values


def _blocks(path: str, leaf: Any, field: Field) -> Callable[[], Values]:
    """The values of a quantized matrix, worked out when they are asked for. Raises WorkerError for other scales."""
    columns, rows, *_ = field.sizes
    count = columns * rows // BLOCK[field.held.dtype]
    expected = field.scales()
    if field.held.dtype == "int8":
        parts, sizes, per = {"w", "m"}, (2 * count, 1, 1, 1), 1
    else:
        parts, sizes, per = {"q", "w", "m"}, (count, 1, 1, 1), 2
    if not isinstance(leaf, dict) or leaf.keys() != parts:
        raise WorkerError(f"{path} has not the fields {', '.join(sorted(parts))}")
    m = _tensor(f"{path}.m", leaf["m"], sizes, "<f2").astype("<f4")
    w = _tensor(f"{path}.w", leaf["w"], (columns // per, rows, 1, 1), "u1")
    if not np.array_equal(m, expected):
        raise WorkerError(f"{path}.m holds other values than the checkpoint: its blocks have other scales")
    if field.held.dtype == "int8":
        least, most = m.reshape(-1, 2)[:, :1], m.reshape(-1, 2)[:, 1:]
        return lambda: (w.reshape(count, -1) / np.float32(255) * (most - least) + least).reshape(field.held.shape)
    if not np.array_equal(_tensor(f"{path}.q", leaf["q"], (16, 1, 1, 1), "<f4"), NORMAL):
        raise WorkerError(f"{path}.q holds other levels than those of NF4")

    def values() -> Values:
        index = np.stack([w & 15, w >> 4], axis=-1).reshape(count, -1)
        return np.asarray((NORMAL[index] * m[:, None]).reshape(field.held.shape))

    return values
