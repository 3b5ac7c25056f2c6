"""Changes of values that several formats make when they store a tensor."""

from __future__ import annotations

from functools import cache
from typing import Any

from rwkvflow.worker.maps import changes
from rwkvflow.worker.maps.changes import ValueChange
from rwkvflow.worker.write.layout import Transform

TRANSPOSE = Transform("swap the last two dims", lambda a: a.swapaxes(-1, -2))

# Of rwkv6qwen2, whose low-rank matrices of the token shift stand in the order r, k, v, w, g: in version 6's, w, k, v,
# r, g, and with the last two dims swapped.
_ORDER = (3, 1, 2, 0, 4)


def _first(a: Any) -> Any:
    """[C, 5·R] to [5·R, C]."""
    return a.T.reshape(5, -1, a.shape[0])[list(_ORDER)].reshape(-1, a.shape[0])


SHIFT_FIRST = Transform("swap the last two dims, and order r k v w g as w k v r g", _first)
SHIFT_SECOND = Transform(
    "order r k v w g as w k v r g, and swap the last two dims", lambda a: a[list(_ORDER)].swapaxes(-1, -2)
)


@cache
def transform_of(change: ValueChange) -> Transform:
    """What makes a change of a map as a tensor is written."""
    return Transform(change.name, change.function, arithmetic=True)


EXP, NEGATIVE_EXP, EXP_NEGATIVE_EXP = map(transform_of, (changes.EXP, changes.NEGATIVE_EXP, changes.EXP_NEGATIVE_EXP))
