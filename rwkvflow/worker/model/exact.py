"""exp of float32 in arithmetic that is the same on every machine.

The exponentials of libm and of vector libraries differ by a unit in the last place between processors and versions, and
a converted file would differ with them. Here only +, -, *, / and rint of IEEE single and double precision are used, one
at a time as numpy computes them.

The method is Tang's (P. T. P. Tang, "Table-driven implementation of the exponential function in IEEE floating-point
arithmetic", ACM TOMS 15(2), 1989) in single precision with 128 steps to the octave and a polynomial of degree 2: within
0.57 units in the last place. Where float32 comes near its limits, beyond 126 ln 2, double precision is used and the
result is the correctly rounded one (but for about one argument in 2^26). Both were chosen because these are the bits of
PyTorch's exp on AMD's processors, so that a converted model equals, byte for byte, what rwkv.cpp's converter writes
there. On Intel's, the MKL in PyTorch takes another path, whose bits differ in the last place; with MKL_CBWR=COMPATIBLE
set before it is loaded, it gives these there as well.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = 128
STEP_INVERSE = float.fromhex("0x1.715476p+7")  # STEPS / ln 2 as float32
STEP_HIGH = float.fromhex("0x1.63p-8")  # ln 2 / STEPS in two parts: 9 bits, so that products with the count are exact,
STEP_LOW = float.fromhex("-0x1.bd0106p-20")  # and the rest as float32
NEAR = float.fromhex("0x1.5d58ap+6")  # 126 ln 2 as float32

# ln 2 in two parts for double precision; the first has 33 bits, so that its product with a small integer is exact.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LN2_INVERSE = float.fromhex("0x1.71547652b82fep+0")
TERMS = 14  # of the series on |r| <= ln(2)/2: the first term left out is below 2^-58


def exp32(values: NDArray[Any]) -> NDArray[Any]:
    """e to the power of each float32, as float32 of the same shape. Infinities, NaN and overflow as in IEEE 754."""
    import numpy as np

    x = np.asarray(values, np.float32)
    bad = np.isnan(x)
    near = np.abs(x) <= np.float32(NEAR)
    result = np.where(near, _single(np.where(near, x, np.float32(0))), _double(np.where(bad, np.float32(0), x)))
    return np.where(bad, np.float32(np.nan), result)


def _single(x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    high, low = _table()
    steps = np.rint(x * np.float32(STEP_INVERSE))
    r = (x - steps * np.float32(STEP_HIGH)) - steps * np.float32(STEP_LOW)
    p = r + (np.float32(0.5) * r) * r
    count = steps.astype(np.int32)
    j = count % STEPS
    value = high[j] + (low[j] + high[j] * p)
    out: NDArray[Any] = np.ldexp(value, (count - j) // STEPS)
    return out


def _double(x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    # The result is 0 below -104 and infinite above 89; within, the powers of two stay normal doubles.
    inside = np.clip(x.astype(np.float64), -120.0, 100.0)
    k = np.rint(inside * LN2_INVERSE)
    r = (inside - k * LN2_HIGH) - k * LN2_LOW
    total = np.ones_like(r)
    for n in range(TERMS, 0, -1):
        total = 1.0 + r * total / n
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(total, k.astype(np.int32)).astype(np.float32)


@cache
def _table() -> tuple[NDArray[Any], NDArray[Any]]:
    """2^(j/128) as the sum of two float32."""
    import numpy as np

    context = Context(prec=40)
    high, low = [], []
    for j in range(STEPS):
        exact = context.power(Decimal(2), context.divide(Decimal(j), Decimal(STEPS)))
        high.append(np.float32(float(exact)))
        low.append(np.float32(float(context.subtract(exact, Decimal(float(high[-1]))))))
    return np.array(high, np.float32), np.array(low, np.float32)
