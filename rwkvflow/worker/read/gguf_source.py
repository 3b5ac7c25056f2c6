"""llama.cpp's F32, F16 and BF16 files of versions 6 and 7 as checkpoints: the author's names, shapes and values.

What maps/gguf.py says of each version, backwards. Transposed matrices are views, as are the parts of those that
were fused; what was halved in version 6 is doubled again. Layer 0's `v0 v1 v2`, which no model has, are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.maps.gguf import BLOCK, FUSED, GLOBAL, TRANSPOSED
from rwkvflow.worker.model.rounding import bf16_to_float32
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.model.variants import label_of, refuse_called
from rwkvflow.worker.model.versions import HYBRIDS, RESCALED, SPECS
from rwkvflow.worker.read.gguf_file import GgufIndex, GgufTensor, read_open
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file.pth import Index, View

#: Tensors of a layer that the author writes as [1, 1, n].
ROWS = frozenset(spec.name for version in BLOCK for spec in SPECS[version].tensors if spec.shape[:2] == (1, 1))
_BLOCK = re.compile(r"blk\.([0-9]{1,9})\.(.+)")


def read_index(file: RawFile, quantized: dict[str, GgufTensor] | None = None) -> Index:
    """Raises WorkerError for a damaged file or one of another model.

    And for a quantized one unless its tensors may go into `quantized`, under the author's names.
    """
    index = read_open(file)
    model = index.metadata.get("general.architecture")
    refuse_called({"general.architecture": model})
    if model in HYBRIDS:
        raise UnknownModelError(
            f"{file.name}: a GGUF of {label_of(str(model))} ({model}), which llama.cpp runs and nothing here reads: "
            "take the Hugging Face folder that it was made of"
        )
    if model not in ("rwkv6", "rwkv7"):
        raise WorkerError(f"{file.name}: a GGUF of {str(model)[:40]!a}; only rwkv6 and rwkv7 are known")
    version = model[-1]
    whole = {theirs: ours for ours, theirs in GLOBAL.items()}
    parts = {theirs: ours for ours, theirs in BLOCK[version].items()}
    every = _number(file, index, f"{model}.rescale_every_n_layers") if version == "6" else 0
    size = _number(file, index, f"{model}.wkv.head_size")
    views: dict[str, View] = {}
    changes: dict[str, Callable[[Any], Any]] = {}
    ignored = []
    for tensor in index.tensors.values():
        if tensor.type not in ITEM_BYTES and quantized is not None:
            match = _BLOCK.fullmatch(tensor.name)
            part = parts.get(match[2]) if match else None
            quantized[whole.get(tensor.name, f"blocks.{match[1]}.{part}" if match and part else tensor.name)] = tensor
            continue
        if tensor.type not in ITEM_BYTES:
            raise WorkerError(
                f"{file.name}: {tensor.name} is quantized ({tensor.type}); convert from the F32, F16 or BF16 file, or "
                "the checkpoint, that it was made of"
            )
        match = _BLOCK.fullmatch(tensor.name)
        if match is None:
            if tensor.name in whole:
                views[whole[tensor.name]] = _view(whole[tensor.name], tensor, tensor.shape)
            else:
                ignored.append(tensor.name)
            continue
        layer, rest = match.groups()
        if rest == "time_mix_lerp_fused.weight":
            for view in _fused(layer, tensor, FUSED[version]):
                views[view.info.name] = view
            continue
        part = parts.get(rest)
        if part is None or (version == "7" and layer == "0" and part in ("att.v0", "att.v1", "att.v2")):
            ignored.append(tensor.name)
            continue
        name = f"blocks.{layer}.{part}"
        views[name] = _single(name, part, tensor, size, part in TRANSPOSED)
        if every and part in RESCALED and (halvings := int(layer) // every):
            changes[name] = _doubled(halvings)
    return Index(views, {}, tuple(ignored), lambda on_bytes: 0, changes)


def _number(file: RawFile, index: GgufIndex, key: str) -> int:
    value = index.metadata.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise WorkerError(f"{file.name}: broken GGUF file: {key} is {str(value)[:40]!a}")
    return value


def _single(name: str, part: str, tensor: GgufTensor, head_size: int, transposed: bool) -> View:
    shape = tensor.shape
    if transposed and len(shape) > 1:
        stride = _rows(shape)
        swapped = (*shape[:-2], shape[-1], shape[-2])
        info = TensorInfo(name, tensor.type, swapped)
        return View(info, tensor.offset, tensor.nbytes, (*stride[:-2], stride[-1], stride[-2]))
    count = math.prod(shape)
    if part == "att.r_k" and head_size and count % head_size == 0:
        return _view(name, tensor, (count // head_size, head_size))
    return _view(name, tensor, (1, 1, count) if part in ROWS else shape)


def _fused(layer: str, tensor: GgufTensor, parts: tuple[str, ...]) -> Iterator[View]:
    count = math.prod(tensor.shape) // len(parts)
    for index, part in enumerate(parts):
        info = TensorInfo(f"blocks.{layer}.{part}", tensor.type, (1, 1, count))
        yield View(info, tensor.offset + index * count * ITEM_BYTES[tensor.type], tensor.nbytes, (count, count, 1))


def _view(name: str, tensor: GgufTensor, shape: tuple[int, ...]) -> View:
    return View(TensorInfo(name, tensor.type, shape), tensor.offset, tensor.nbytes, _rows(shape))


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _doubled(times: int) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        if values.dtype.kind == "u":  # bfloat16 as bits
            wide = bf16_to_float32(values) * 2.0**times
            return (wide.view("<u4") >> 16).astype("<u2")
        return values * values.dtype.type(2.0**times)

    return change
