"""A model file with its weights as the F32 numbers they stand for: rwkv.cpp's block layouts once more, in numpy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = {2: 18, 3: 20, 7: 22, 8: 24, 9: 34, 13: 144, 14: 176}
SUPER = (13, 14)
Array = np.ndarray[Any, Any]


def _half(columns: Array) -> Array:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def floats(kind: int, data: bytes) -> Array:
    """The float32 values of a tensor's data."""
    if kind == 0:
        return np.frombuffer(data, "<f4")
    if kind == 1:
        return np.frombuffer(data, "<f2").astype(np.float32)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES[kind])
    if kind in SUPER:
        return np.concatenate([_super_block(kind, block) for block in blocks])
    scale = _half(blocks[:, :2])
    if kind == 9:
        return (scale * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)).ravel()
    at = 2
    least: Any = 0
    if kind in (3, 8):
        least, at = _half(blocks[:, 2:4]), 4
    fifth: Any = 0
    if kind in (7, 8):
        bits = np.ascontiguousarray(blocks[:, at : at + 4]).view("<u4")
        fifth, at = ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.int32) << 4, at + 4
    quants = np.concatenate([blocks[:, at:] & 15, blocks[:, at:] >> 4], axis=1).astype(np.int32) | fifth
    quants -= {2: 8, 7: 16}.get(kind, 0)
    values: Array = (scale * quants.astype(np.float32) + least).astype(np.float32).ravel()
    return values


def _super_block(kind: int, block: Array) -> Array:
    d, dmin = block[:4].view("<f2").astype(np.float32)
    packed, out = block[4:16].astype(int), []
    for sub in range(8):
        if sub < 4:
            scale, least = packed[sub] & 63, packed[sub + 4] & 63
        else:
            scale = packed[sub + 4] % 16 + 16 * (packed[sub - 4] // 64)
            least = packed[sub + 4] // 16 + 16 * (packed[sub] // 64)
        quants = block[-128:][sub // 2 * 32 :][:32] >> (4 * (sub % 2)) & 15
        if kind == 14:
            quants = quants + 16 * (block[16:48] >> sub & 1)
        out.append(d * np.float32(scale) * quants.astype(np.float32) - dmin * np.float32(least))
    return np.concatenate(out).astype(np.float32)


def write(source: Path, target: Path) -> Path:
    """`source` with all tensors as F32."""
    data = source.read_bytes()
    out = bytearray(data[:20] + struct.pack("<i", 0))
    at = 24
    while at < len(data):
        n_dims, length, kind = struct.unpack_from("<3i", data, at)
        dims = struct.unpack_from(f"<{n_dims}i", data, at + 12)
        name = data[at + 12 + 4 * n_dims :][:length]
        at += 12 + 4 * n_dims + length
        count = int(np.prod(dims))
        size = count * (4, 2)[kind] if kind < 2 else count // (256 if kind in SUPER else 32) * BLOCK_BYTES[kind]
        values = floats(kind, data[at : at + size])
        at += size
        out += struct.pack(f"<{3 + n_dims}i", n_dims, length, 0, *dims) + name + values.astype("<f4").tobytes()
    target.write_bytes(out)
    return target
