"""Arithmetic of converted tensors in numpy: the same bits on every machine, whatever its vector units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.model.versions import LAYER_NORM_EPS


def rounded(dtype: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 values of any shape, each the nearest value of `dtype` ("f16", "bf16"; others stay as they are)."""
    values = np.ascontiguousarray(values, "<f4")
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").astype("<f4")
    if dtype != "bf16":
        return values
    bits = values.view("<u4")
    cut = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, cut.view("<f4"))


def bf16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits (uint16, any shape) to float32: exact, bfloat16 is the upper half of a float32."""
    wide: NDArray[np.uint32] = bits.astype("<u4")
    wide <<= np.uint32(16)
    return wide.view("<f4")


def layer_norm(
    values: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], eps: float = LAYER_NORM_EPS
) -> NDArray[np.float32]:
    """Layer norm over the last dim of [rows, n], in float64 with sums in a fixed order, rounded to float32."""
    wide = values.astype(np.float64)
    wide -= _sums(wide) / wide.shape[-1]
    deviation = np.sqrt(_sums(wide * wide) / wide.shape[-1] + eps)
    return np.asarray(wide / deviation * weight.astype(np.float64) + bias.astype(np.float64), "<f4")


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the last dim, which stays with size 1: the second half is added to the first until one is left."""
    while (size := values.shape[-1]) > 1:
        half = size // 2
        added = values[..., :half] + values[..., half : 2 * half]
        values = np.concatenate([added, values[..., 2 * half :]], axis=-1) if size % 2 else added
    return values


def product(b: NDArray[np.float32], a: NDArray[np.float32]) -> NDArray[np.float32]:
    """b [n, r] times a [r, m] in float32, the products of each sum added in the order of r, each rounded."""
    total = b[:, :1] * a[:1]
    one = np.empty_like(total)
    for k in range(1, len(a)):
        np.multiply(b[:, k, None], a[k], out=one)
        np.add(total, one, out=total)
    return total
