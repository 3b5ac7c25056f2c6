"""rwkv.cpp's F32 and F16 files as checkpoints: the author's names, shapes and values, as far as the file has them.

What formats/ggml.py says of each version, backwards. Transposed matrices are views. Decays stand in the file as
-exp(x) or exp(-exp(x)) and bonuses of 5.0 as exp(x); the x that is found gives the very value of the file again, so a
file that is converted once more is the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.model.versions import tell_version
from rwkvflow.worker.read.ggml_file import GgmlTensor, read_open
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file.pth import Index, View

Change = Callable[[Any], Any]
TRANSPOSED = ("att.time_maa_w1", "att.time_maa_w2", "att.time_decay_w1", "att.time_decay_w2")
LOW_RANK = tuple(f"att.{x}{n}" for x in "wavg" for n in "12")
NEAR = 12  # steps around the first guess among which the inverse is looked for


def read_index(file: RawFile, quantized: dict[str, GgmlTensor] | None = None) -> Index:
    """Raises WorkerError for a damaged file, and a quantized one unless its tensors may go into `quantized`."""
    index = read_open(file)
    views: dict[str, View] = {}
    changes: dict[str, Change] = {}
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
            if change := _change(version, view.info.name):
                changes[view.info.name] = change
    return Index(views, {}, (), lambda on_bytes: 0, changes)


def version_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model's version by the names that rwkv.cpp's converter leaves; None when there are none of them."""
    return tell_version((name, shape) for name, shape in shapes.items() if name.startswith("blocks.0."))


def _views(version: str | None, tensor: GgmlTensor) -> Iterator[View]:
    """The author's tensors that one of the file holds: one, or six that were joined."""
    name, shape = tensor.name, tensor.shape
    if version == "7" and name.endswith("att.x_rwkvag") and shape and shape[0] == 6:
        part = (1, *shape[1:])
        size = math.prod(part)
        for index, letter in enumerate("rwkvag"):
            info = TensorInfo(f"{name.removesuffix('rwkvag')}{letter}", tensor.type, part)
            yield View(info, tensor.offset + index * size * ITEM_BYTES[tensor.type], tensor.nbytes, _rows(part))
        return
    stride = _rows(shape)
    if len(shape) > 1 and name.endswith(LOW_RANK if version == "7" else TRANSPOSED if version == "6" else ()):
        shape, stride = (*shape[:-2], shape[-1], shape[-2]), (*stride[:-2], stride[-1], stride[-2])
    elif ".time_" in name:
        shape = _time_shape(version, name, shape)
        stride = _rows(shape)
    yield View(TensorInfo(name, tensor.type, shape), tensor.offset, tensor.nbytes, stride)


def _time_shape(version: str | None, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The author's: mixes are [1, 1, n], decays and bonuses [n], [heads] or [heads, size]."""
    count = math.prod(shape)
    last = name.rpartition(".")[2]
    if last.startswith(("time_mix_", "time_maa_")) or (version == "6" and last == "time_decay"):
        return (1, 1, count)
    if last in ("time_decay", "time_first", "time_faaaa"):
        flat = tuple(size for size in shape if size != 1)
        return (shape[0], shape[1]) if version in ("5.2", "6") and len(shape) > 1 else flat or (count,)
    return shape


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# ---- values -----------------------------------------------------------------------------------------------------


def _change(version: str | None, name: str) -> Change | None:
    if ".time_decay" in name and version == "4":
        return lambda values: _inverse(values, lambda x: -_exp(x), lambda y: _log(-y))
    if ".time_decay" in name and version in ("5.0", "5.1", "5.2"):
        return lambda values: _inverse(values, lambda x: _exp(-_exp(x)), lambda y: _log(-_log(y)))
    if ".time_first" in name and version in ("5.0", "5.1", "5.2"):
        return lambda values: _inverse(values, _exp, _log)
    return None


def _exp(values: Any) -> Any:
    from rwkvflow.worker.model.exact import exp32

    return exp32(values)


def _log(values: Any) -> Any:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def _inverse(values: Any, function: Change, guess: Change) -> Any:
    """For each float32 y a float32 x with function(x) == y exactly, else the nearest that is found.

    Many x may give one y. Of those near it the one is taken that ends in the most zeros: it is what a checkpoint in
    bfloat16 or half precision had, and does not depend on the machine's log.
    """
    import numpy as np

    y = np.ascontiguousarray(values, "<f4")
    first = guess(y.astype(np.float64))
    # Where y is 0 or 1 the guess is infinite, and any x far enough out will do.
    first = np.clip(np.nan_to_num(first, nan=0.0, posinf=20.0, neginf=-40.0), -200.0, 200.0).astype("<f4")
    best, error = first.copy(), np.full(y.shape, np.inf, np.float64)
    tidy = np.full(y.shape, -1, np.int64)
    for low in (16, 13, 10, 0):  # bits that bfloat16, half precision and something between leave at zero
        base = ((first.view("<i4") >> low) << low).view("<f4")
        for step in range(-NEAR, NEAR + 1):
            x = _moved(base, step << low)
            with np.errstate(all="ignore"):
                off = np.abs(function(x).astype(np.float64) - y)
            zeros = _trailing_zeros(x)
            better = (off < error) | ((off == error) & (zeros > tidy))
            best, error, tidy = np.where(better, x, best), np.where(better, off, error), np.where(better, zeros, tidy)
    return best.astype("<f4")


def _moved(values: Any, steps: int) -> Any:
    """The float32 values so many units in the last place further from zero."""
    import numpy as np

    return (values.view("<i4") + np.int32(steps)).view("<f4")


def _trailing_zeros(values: Any) -> Any:
    import numpy as np

    bits = values.view("<i4").astype(np.int64)
    lowest = bits & -bits
    return np.where(bits == 0, 32, np.frexp(lowest.astype(np.float64))[1])
