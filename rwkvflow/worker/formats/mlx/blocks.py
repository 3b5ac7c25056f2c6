"""MLX's affine blocks of 64 weights, bit for bit those of `mlx.core.quantize` (mlx/backend/cpu/quantized.cpp).

A weight is scale * q + bias, with q of 6 or 8 bits and scale and bias in the type of the weights. The end of a block
that is further from 0 is hit exactly. q are packed from the lowest bit on: four of 6 bits in three bytes; rows of them
are arrays of uint32. Every operation is one of float32, also where weights are of 16 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rwkvflow.worker.errors import WorkerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP: Final = 64  # weights of a block
SMALLEST: Final = 1e-7  # the least span of a step


def steps(values: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and bias of each block of float32 [rows, columns]: float32 [rows, columns / 64].

    Raises WorkerError for values that are not finite.
    """
    import numpy as np

    if not np.isfinite(values).all():
        raise WorkerError("a matrix holds a NaN or an infinity, which a quantized one cannot hold")
    blocks = values.reshape(len(values), -1, GROUP)
    least, most = blocks.min(axis=-1), blocks.max(axis=-1)
    below = np.abs(least) > np.abs(most)
    size = np.maximum((most - least) / np.float32(2**bits - 1), np.float32(SMALLEST))
    scale = np.where(below, size, -size)
    edge = np.where(below, least, most)
    count = np.rint(edge / scale)
    hit = count != 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(hit, edge / count, scale), np.where(hit, edge, np.float32(0))


def packed(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """The q of float32 [rows, columns], packed: uint8 [rows, columns * bits / 8]. Raises WorkerError as `steps`."""
    import numpy as np

    scale, bias = steps(values, bits)
    blocks = values.reshape(len(values), -1, GROUP)
    q = np.rint((blocks - bias[..., None]) / scale[..., None])
    q = np.clip(q, np.float32(0), np.float32(2**bits - 1)).astype(np.uint8).reshape(len(values), -1)
    if bits == 8:
        return np.asarray(q)
    a, b, c, d = (q[:, part::4] for part in range(4))
    return np.asarray(np.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], axis=-1).reshape(len(values), -1))
