"""Changes of a tensor's values that a format makes when it stores them, each with its inverse.

A format's map names them, a writer makes them, and a reader takes them back: what is written backwards here is written
nowhere else. Nothing imports numpy before there are values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NEAR = 12  # steps around the first guess among which the inverse is looked for


@dataclass(frozen=True)
class ValueChange:
    """A change of float32 values, one by one.

    `guess` is its inverse, in float64 and not exact; `back` finds from it what gives the very values again.
    """

    name: str
    function: Callable[[Any], Any]
    guess: Callable[[Any], Any]

    def back(self, values: Any) -> Any:
        """For each float32 y a float32 x with function(x) == y exactly, else the nearest that is found.

        Many x may give one y. Of those near it the one is taken that ends in the most zeros: it is what a checkpoint in
        bfloat16 or half precision had, and does not depend on the machine's log.
        """
        import numpy as np

        y = np.ascontiguousarray(values, "<f4")
        first = self.guess(y.astype(np.float64))
        # Where y is 0 or 1 the guess is infinite, and any x far enough out will do.
        first = np.clip(np.nan_to_num(first, nan=0.0, posinf=20.0, neginf=-40.0), -200.0, 200.0).astype("<f4")
        best, error = first.copy(), np.full(y.shape, np.inf, np.float64)
        tidy = np.full(y.shape, -1, np.int64)
        for low in (16, 13, 10, 0):  # bits that bfloat16, half precision and something between leave at zero
            base = ((first.view("<i4") >> low) << low).view("<f4")
            for step in range(-NEAR, NEAR + 1):
                x = _moved(base, step << low)
                with np.errstate(all="ignore"):
                    off = np.abs(self.function(x).astype(np.float64) - y)
                zeros = _trailing_zeros(x)
                better = (off < error) | ((off == error) & (zeros > tidy))
                best, error = np.where(better, x, best), np.where(better, off, error)
                tidy = np.where(better, zeros, tidy)
        return best.astype("<f4")


def _moved(values: Any, steps: int) -> Any:
    """The float32 values so many units in the last place further from zero."""
    import numpy as np

    return (values.view("<i4") + np.int32(steps)).view("<f4")


def _trailing_zeros(values: Any) -> Any:
    import numpy as np

    bits = values.view("<i4").astype(np.int64)
    lowest = bits & -bits
    return np.where(bits == 0, 32, np.frexp(lowest.astype(np.float64))[1])


def _exp(values: Any) -> Any:
    from rwkvflow.worker.model.exact import exp32

    return exp32(values)


def _log(values: Any) -> Any:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


EXP = ValueChange("exp(x)", _exp, _log)
NEGATIVE_EXP = ValueChange("-exp(x)", lambda x: -_exp(x), lambda y: _log(-y))
EXP_NEGATIVE_EXP = ValueChange("exp(-exp(x))", lambda x: _exp(-_exp(x)), lambda y: _log(-_log(y)))
