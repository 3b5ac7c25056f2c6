"""Values of a checkpoint to the bytes of an artifact: transform, then quantize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.rounding import bf16_to_float32
from rwkvflow.worker.model.weight_types import BF16, F32, TYPE_OF_DTYPE
from rwkvflow.worker.write.layout import Encoding
from rwkvflow.worker.write.native import Native

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPONENT_BF16 = np.uint16(0x7F80)  # all ones: an infinity, or a NaN where more is set
Encoded = tuple[memoryview, bool]  # bytes, and whether all that they hold is finite


def encode(
    native: Native, raw: NDArray[Any], dtype: str, encoding: Encoding, needed: Sequence[NDArray[Any]]
) -> Encoded:
    """The bytes of values as `Checkpoint.read` gives them. `needed` are the tensors that the transform wants besides.

    Raises WorkerError for a dtype that cannot be converted.
    """
    transform, kind = encoding.transform, encoding.kind
    if kind is None and transform is None:
        return _view(raw), True
    values, source = raw, TYPE_OF_DTYPE.get(dtype)
    if source is None or (transform is not None and transform.arithmetic):
        values, source = _float32(raw, dtype), F32
    if transform is not None:
        values = np.ascontiguousarray(transform.function(values, *needed))
    if kind is None:
        return _view(values), True
    if source == kind and not encoding.via_f16:
        return _view(values), native.count_not_finite(values, source) == 0
    if encoding.importance is not None:
        try:
            weights = encoding.importance.weights
            out, finite = native.encode_weighted(values, source, kind, weights, encoding.via_f16)
        except ValueError as error:
            raise WorkerError(f"{encoding.importance.key.rpartition(':')[2]}: {error}") from None
        return out.data, finite
    out, finite = native.encode(values, source, kind, values.size, encoding.via_f16)
    return out.data, finite


def oddity(raw: NDArray[Any], dtype: str) -> str:
    """What values hold that is no number of theirs: "a NaN", "an infinity", or "" where all are finite."""
    if TYPE_OF_DTYPE.get(dtype) == BF16:
        bits = raw.view(np.uint16) & np.uint16(0x7FFF)
        nan, infinite = bits > EXPONENT_BF16, bits == EXPONENT_BF16
    else:
        nan, infinite = np.isnan(raw), np.isinf(raw)
    return "a NaN" if nan.any() else "an infinity" if infinite.any() else ""


def _float32(raw: NDArray[Any], dtype: str) -> NDArray[Any]:
    if TYPE_OF_DTYPE.get(dtype) == BF16:
        return bf16_to_float32(raw)
    if dtype.startswith("f8"):
        raise WorkerError(f"tensors of type {dtype} cannot be converted")
    with np.errstate(over="ignore"):
        return raw.astype("<f4", copy=False)


def _view(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data
