"""The blocks of web-rwkv's quantized matrices, as its shaders make them (src/shaders/quant_mat_int8.wgsl, _nf4.wgsl).

Both go over a matrix in rows, whatever its width: block b holds the values [b·n, (b + 1)·n) of the whole.

    int8   128 values: bytes q, and fp16 (min, max); a value is min + q/255 · (max - min)
    nf4    64 values: q of four bits, the lower ones first, and fp16 the largest magnitude; a value is LEVELS[q] · that

Every operation is one of float32, as WGSL says of pack4x8unorm and of the arithmetic before it.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT8, NF4 = 128, 64  # values of a block
#: The 16 levels of QLoRA's NormalFloat (src/tensor/matrix.rs), float32.
LEVELS: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def int8_ends(values: NDArray[Any]) -> NDArray[Any]:
    """The least and the largest of each block of finite fp16 values: fp16 [blocks, 2]."""
    import numpy as np

    blocks = values.reshape(-1, INT8)
    return np.stack([blocks.min(axis=1), blocks.max(axis=1)], axis=1)


def int8(values: NDArray[Any]) -> NDArray[Any]:
    """The byte of each fp16 value: uint8 [n]. Where all values of a block are the same it is 0."""
    import numpy as np

    ends = int8_ends(values).astype("<f4")
    least = ends[:, :1]
    span = ends[:, 1:] - least
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (values.reshape(-1, INT8).astype("<f4") - least) / span
    share = np.where(span == 0, np.float32(0), np.clip(share, np.float32(0), np.float32(1)))
    return np.asarray(np.floor(np.float32(0.5) + np.float32(255) * share).astype(np.uint8).reshape(-1))


def nf4_scales(values: NDArray[Any]) -> NDArray[Any]:
    """The largest magnitude of each block of finite fp16 values: fp16 [blocks]."""
    import numpy as np

    found: NDArray[Any] = np.abs(values.reshape(-1, NF4)).max(axis=1)
    return found


def nf4(values: NDArray[Any]) -> NDArray[Any]:
    """Two of the fp16 values a byte: uint8 [n/2]. Where all values of a block are 0 the level is the first."""
    import numpy as np

    largest = nf4_scales(values).astype("<f4")[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = values.reshape(-1, NF4).astype("<f4") * (np.float32(1) / largest)
    index = np.searchsorted(_thresholds(), share.reshape(-1), side="right").astype(np.uint8)
    index = np.where(np.repeat(largest == 0, NF4), np.uint8(0), index)
    return np.asarray(index[0::2] | index[1::2] << 4, np.uint8)


@cache
def _thresholds() -> NDArray[Any]:
    """For each two levels the least float32 that is at least as near to the upper one, 15 of them.

    As the shader decides: it takes the last level whose distance, a float32, is not larger than any before it.
    """
    import numpy as np

    found = []
    for low, high in pairwise(np.array(LEVELS, np.float32)):
        x = np.float32((np.float64(low) + np.float64(high)) / 2)
        down, up = np.float32(-np.inf), np.float32(np.inf)
        while abs(high - x) <= abs(low - x):
            x = np.nextafter(x, down)
        while not abs(high - x) <= abs(low - x):
            x = np.nextafter(x, up)
        found.append(x)
    return np.array(found, np.float32)
