"""Values of quantized rows, in numpy: for looking into files, not for running them.

A block is 32 weights (ggml's quants): a scale d, in some a minimum m, both F16; in the five-bit ones 32 high bits; then
16 bytes whose low halves are weights 0 to 15 and whose high halves are 16 to 31, or 32 int8.

A super-block of q4_k and q5_k is 256 weights in eight sub-blocks: d and dmin, both F16; 12 bytes with a scale and a
minimum of 6 bits for each sub-block; in q5_k 32 bytes, bit s of byte j being the high bit of weight j of sub-block s;
then 32 bytes for each two sub-blocks, the first in the low halves. A weight is d * scale * q - dmin * minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.model.weight_types import WEIGHT_TYPES

#: Bytes of a block of each type that weights are quantized to.
BLOCK_BYTES = {kind.name: kind.nbytes for kind in WEIGHT_TYPES if kind.is_quantized}


def dequantize(kind: str, data: bytes) -> NDArray[np.float32]:
    """The values of whole blocks of a type in BLOCK_BYTES. Raises KeyError for another."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES[kind])
    scale = _halves(blocks, 0)
    if kind.endswith("_k"):
        return _super_blocks(kind, blocks, scale)
    if kind == "q8_0":
        return np.asarray(blocks[:, 2:].view(np.int8) * scale, np.float32).reshape(-1)
    minimum = _halves(blocks, 2) if kind.endswith("_1") else None
    at = 4 if minimum is not None else 2
    nibbles = blocks[:, -16:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    if kind.startswith("q5"):
        bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
        q += bits.astype(np.float32) * 16
    if minimum is not None:
        return (q * scale + minimum).reshape(-1)
    return ((q - (16 if kind == "q5_0" else 8)) * scale).reshape(-1)


def _super_blocks(kind: str, blocks: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high, both = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scales = np.concatenate([low & 63, (both & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (both >> 4) | (high >> 6 << 4)], axis=1)
    nibbles = blocks[:, -128:].reshape(-1, 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32)
    if kind == "q5_k":
        bits = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
        q = q | (bits & 1) << 4
    each = scale * scales.astype(np.float32)
    least = _halves(blocks, 2) * minima.astype(np.float32)
    return np.asarray(each[:, :, None] * q.astype(np.float32) - least[:, :, None], np.float32).reshape(-1)


def _halves(blocks: NDArray[Any], at: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
