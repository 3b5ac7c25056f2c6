"""rwkv.cpp's F32 and F16 files as checkpoints: the author's names, shapes and values, as far as the file has them.

What maps/ggml.py says of each version, backwards. Transposed matrices are views. Decays stand in the file as
-exp(x) or exp(-exp(x)) and bonuses of 5.0 as exp(x); the x that is found gives the very value of the file again, so a
file that is converted once more is the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.maps.ggml import joined_in, rule_of
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.model.versions import tell_version
from rwkvflow.worker.read.ggml_file import GgmlTensor, read_open
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file.pth import Index, View


def read_index(file: RawFile, quantized: dict[str, GgmlTensor] | None = None) -> Index:
    """Raises WorkerError for a damaged file, and a quantized one unless its tensors may go into `quantized`."""
    index = read_open(file)
    views: dict[str, View] = {}
    changes: dict[str, Callable[[Any], Any]] = {}
    version = version_of({name: tensor.shape for name, tensor in index.tensors.items()})
    for tensor in index.tensors.values():
        if tensor.type not in ITEM_BYTES and quantized is not None:
            quantized[tensor.name] = tensor  # none of those that are transposed or joined
            continue
        if tensor.type not in ITEM_BYTES:
            raise WorkerError(
                f"{file.name}: {tensor.name} is quantized ({tensor.type}); convert from the F32 or F16 file, or the "
                "checkpoint, that it was made of"
            )
        for view in _views(version, tensor):
            views[view.info.name] = view
            if change := rule_of(version, view.info.name).change:
                changes[view.info.name] = change.back
    return Index(views, {}, (), lambda on_bytes: 0, changes)


def version_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model's version by the names that rwkv.cpp's converter leaves; None when there are none of them."""
    return tell_version((name, shape) for name, shape in shapes.items() if name.startswith("blocks.0."))


def _views(version: str | None, tensor: GgmlTensor) -> Iterator[View]:
    """The author's tensors that one of the file holds: one, or six that were joined."""
    name, shape = tensor.name, tensor.shape
    parts, whole = joined_in(version)
    if parts and name.endswith(whole) and shape and shape[0] == len(parts):
        part = (1, *shape[1:])
        size = math.prod(part)
        for index, joined in enumerate(parts):
            info = TensorInfo(f"{name.removesuffix(whole)}{joined}", tensor.type, part)
            yield View(info, tensor.offset + index * size * ITEM_BYTES[tensor.type], tensor.nbytes, _rows(part))
        return
    rule = rule_of(version, name)
    ours = rule.back(shape)
    stride = _rows(ours)
    if rule.swapped and len(shape) > 1:
        stride = _rows(shape)
        stride = (*stride[:-2], stride[-1], stride[-2])
    yield View(TensorInfo(name, tensor.type, ours), tensor.offset, tensor.nbytes, stride)


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
