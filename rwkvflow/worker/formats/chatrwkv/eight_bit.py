"""The `rwkv` package's eight-bit matrices: w = (q + 0.5) rx ry + mx + my with bytes q, a scale and a minimum for each
column (x) and row (y).

All arithmetic is single float32 operations in the package's order, so that the bytes are the package's.
"""

from __future__ import annotations

import threading
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.write.layout import Transform

PARTS = ("bytes", "mx", "rx", "my", "ry")


class Quantized:
    """The parts of one matrix, worked out once for the five that ask. `swapped`: the file's matrix is transposed."""

    def __init__(self, divisor: int, dtype: str, swapped: bool) -> None:
        self._divisor = divisor
        self._dtype = dtype
        self._swapped = swapped
        self._lock = threading.Lock()
        self._parts: dict[str, Any] = {}

    def transform(self, part: str) -> Transform:
        """One of PARTS: bytes in the order of the checkpoint's matrix, or a vector in float32."""

        def function(values: Any) -> Any:
            with self._lock:
                if not self._parts:
                    self._parts = quantize(values, self._divisor, self._dtype, self._swapped)
                return self._parts.pop(part)

        name = f"i8 {part} of the matrix / {self._divisor}" + (", transposed" if self._swapped else "")
        return Transform(f"{name} in {self._dtype}", function, arithmetic=True)


def quantize(values: Any, divisor: int = 1, dtype: str = "f32", swapped: bool = True) -> dict[str, Any]:
    """The PARTS of float32 [rows, columns]; of its transpose where `swapped`. Raises WorkerError where none exist."""
    import numpy as np

    from rwkvflow.worker.model.rounding import rounded

    w = rounded(dtype, values / np.float32(divisor)) if divisor > 1 else values.copy()
    y, x = (0, 1) if swapped else (1, 0)  # axes of w over which the minimum of a row (y) and a column (x) goes
    height, width = (w.shape[1], w.shape[0]) if swapped else w.shape

    def lowest(axis: int) -> Any:
        found = w.min(axis=axis, keepdims=True)
        np.subtract(w, found, out=w)
        return found

    def highest(axis: int) -> Any:
        found = w.max(axis=axis, keepdims=True)
        if not (found > 0).all():  # NaN included
            raise WorkerError("a row or column of a matrix is constant or not finite: it has no eight-bit form")
        np.divide(w, found, out=w)
        return found

    if height > width:
        my = lowest(y)
        mx = lowest(x)
    else:
        mx = lowest(x)
        my = lowest(y)
    rx, ry = highest(x), highest(y)
    np.multiply(w, np.float32(256), out=w)
    np.floor(w, out=w)
    q = np.clip(w, 0, 255, out=w).astype(np.uint8)
    sixteenth = np.float32(16)
    parts = {"bytes": q, "mx": mx, "rx": rx / sixteenth, "my": my, "ry": ry / sixteenth}
    return {key: value if key == "bytes" else value.reshape(-1) for key, value in parts.items()}
