"""Values of quantized rows, in numpy: for looking into files, not for running them.

A block is 32 weights (ggml's quants): a scale d, in some a minimum m, both F16; in the five-bit ones 32 high bits; then
16 bytes whose low halves are weights 0 to 15 and whose high halves are 16 to 31, or 32 int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}


def dequantize(kind: str, data: bytes) -> NDArray[np.float32]:
    """The values of whole blocks of a type in BLOCK_BYTES. Raises KeyError for another."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES[kind])
    scale = _halves(blocks, 0)
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


def _halves(blocks: NDArray[Any], at: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
