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

#: Bytes of a block of each type that weights are quantized to. Of types with points on a grid no values are told here.
BLOCK_BYTES = {kind.name: kind.nbytes for kind in WEIGHT_TYPES if kind.is_quantized and not kind.name.startswith("iq3")}
#: What the codes of iq4_nl and iq4_xs stand for.
CURVE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def dequantize(kind: str, data: bytes) -> NDArray[np.float32]:
    """The values of whole blocks of a type in BLOCK_BYTES. Raises KeyError for another."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES[kind])
    if (other := _OTHERS.get(kind)) is not None:
        return np.asarray(other(blocks), np.float32).reshape(-1)
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


# ---- types whose blocks are of another kind: engine/src/quantize/blocks.h has the layouts ------------------------


def _pairs_of_bits(low: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[blocks, 64] bytes to 256 weights of two bits each, in their order."""
    halves = low.reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.asarray(halves & 3, np.uint8).reshape(-1, 256)


def _scaled(d: NDArray[np.float32], scales: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float32]:
    """d * scale * q, a scale for each 16 weights."""
    each = d * scales.astype(np.float32)
    return np.asarray(each[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32), np.float32)


def _q2_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scales, d, least = blocks[:, :16], _halves(blocks, 80), _halves(blocks, 82)
    minima = (least * (scales >> 4).astype(np.float32))[:, :, None]
    return _scaled(d, scales & 15, _pairs_of_bits(blocks[:, 16:80])) - minima


def _q3_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    mask, packed = blocks[:, :32], blocks[:, 96:108]
    high = (mask[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(-1, 256)
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = (packed[:, None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(-1, 16)
    scales = (low | upper << 4).astype(np.int8) - 32
    q = (_pairs_of_bits(blocks[:, 32:96]) | high << 2).astype(np.int8) - 4
    return _scaled(_halves(blocks, 108), scales, q)


def _q6_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    both = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([both & 15, both >> 4], axis=2).reshape(-1, 256)
    q = (low | _pairs_of_bits(blocks[:, 128:192]) << 4).astype(np.int8) - 32
    return _scaled(_halves(blocks, 208), np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), q)


def _iq4_nl(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(_halves(blocks, 0) * _curve(blocks[:, 2:]), np.float32)


def _iq4_xs(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (low | high.astype(np.uint8) << 4).astype(np.float32) - 32
    each = _halves(blocks, 0) * scales
    return np.asarray(each[:, :, None] * _curve(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32), np.float32)


def _curve(nibbles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, 16] bytes to [n, 32] values."""
    return np.asarray(CURVE[np.concatenate([nibbles & 15, nibbles >> 4], axis=1)], np.float32)


_OTHERS = {"q2_k": _q2_k, "q3_k": _q3_k, "q6_k": _q6_k, "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs}
