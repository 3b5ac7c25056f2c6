"""Arithmetic in fp16 as runtimes do it: every operation in fp32, and what it gives rounded to fp16 before it is stored.

A matrix product in fp16 adds up in fp32 on a GPU, and so does a norm; what is stored between operations is fp16, which
ends at 65504: more is infinite. Values of the class `Half` make every operation of numpy that they take part in so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Half(np.ndarray[Any, np.dtype[np.float32]]):
    """float32 values that fp16 holds. Whatever an operation makes of them is rounded, and is Half again."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, **options: Any) -> Any:
        """The operation in fp32, then rounded."""
        if options.get("out") is not None:
            raise TypeError("values in fp16 are not written over")
        found = getattr(ufunc, method)(*(exact(given) for given in inputs), **options)
        return half(found) if getattr(found, "dtype", None) == np.float32 else found


def half(values: Any) -> Half:
    """Rounded to fp16; what it does not hold is infinite."""
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32).view(Half)


def exact(values: Any) -> Any:
    """The same values, of which operations are not rounded."""
    return values.view(np.ndarray) if isinstance(values, Half) else values


def like(given: Any, values: Any) -> Array:
    """`values` in the arithmetic of `given`: rounded where that is Half, else as float32."""
    return half(values) if isinstance(given, Half) else np.asarray(values, np.float32)
