"""Changes of values that several formats make when they store a tensor."""

from __future__ import annotations

from typing import Any

from rwkvflow.worker.write.layout import Transform


def _exp(values: Any) -> Any:
    from rwkvflow.worker.model.exact import exp32  # numpy: only once there are values

    return exp32(values)


TRANSPOSE = Transform("swap the last two dims", lambda a: a.swapaxes(-1, -2))
EXP = Transform("exp(x)", _exp, arithmetic=True)
NEGATIVE_EXP = Transform("-exp(x)", lambda a: -_exp(a), arithmetic=True)
EXP_NEGATIVE_EXP = Transform("exp(-exp(x))", lambda a: _exp(-_exp(a)), arithmetic=True)
