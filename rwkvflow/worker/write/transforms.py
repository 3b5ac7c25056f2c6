"""Changes of values that several formats make when they store a tensor."""

from __future__ import annotations

from functools import cache

from rwkvflow.worker.maps import changes
from rwkvflow.worker.maps.changes import ValueChange
from rwkvflow.worker.write.layout import Transform

TRANSPOSE = Transform("swap the last two dims", lambda a: a.swapaxes(-1, -2))


@cache
def transform_of(change: ValueChange) -> Transform:
    """What makes a change of a map as a tensor is written."""
    return Transform(change.name, change.function, arithmetic=True)


EXP, NEGATIVE_EXP, EXP_NEGATIVE_EXP = map(transform_of, (changes.EXP, changes.NEGATIVE_EXP, changes.EXP_NEGATIVE_EXP))
