"""What is known of a tensor without reading it. Imports neither numpy nor anything above the standard library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

#: Bytes of one value of each dtype that a checkpoint may hold.
ITEM_BYTES = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8_e4m3": 1,
    "f8_e5m2": 1,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u64": 8,
    "u32": 4,
    "u16": 2,
    "u8": 1,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, dtype (a key of ITEM_BYTES) and shape (PyTorch's order, rows first) of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many values it has; 1 for a scalar, which has the shape ()."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values without gaps, in its own dtype."""
        return self.numel * ITEM_BYTES[self.dtype]


class ModelTensors(dict[str, TensorInfo]):
    """The tensors of a model by their names, in its order.

    `said` are numbers that its config.json says and no tensor tells, by their keys there.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], said: Mapping[str, float] | None = None) -> None:
        super().__init__(tensors)
        self.said: Mapping[str, float] = dict(said or {})
