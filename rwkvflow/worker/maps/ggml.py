"""How rwkv.cpp's `.bin` files hold a checkpoint's tensors, by version: one table for the writer and the reader.

Names are the author's, but for version 7's six `att.x_*`, which are one tensor. What else its converter does is in
RULES: vectors lose their dimensions of size 1, decays and bonuses get some behind, low-rank matrices are transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rwkvflow.worker.maps.changes import EXP, EXP_NEGATIVE_EXP, NEGATIVE_EXP, ValueChange

Shape = tuple[int, ...]
#: By version: tensors of a layer that are one tensor of the file, in this order, and its name.
JOINED: Mapping[str, tuple[tuple[str, ...], str]] = {"7": (tuple(f"att.x_{x}" for x in "rwkvag"), "att.x_rwkvag")}


@dataclass(frozen=True)
class TensorRule:
    """What happens to a tensor whose name has `part` in it, or ends in it where `at_end`.

    swapped  the last two dimensions change places, shape and values
    there    the shape in the file, of the author's and the number of heads; may raise ValueError
    back     the author's shape, of that in the file
    change   of the values; None: they stay
    """

    part: str
    there: Callable[[Shape, int], Shape]
    back: Callable[[Shape], Shape]
    change: ValueChange | None = None
    swapped: bool = False
    at_end: bool = False

    def fits(self, name: str) -> bool:
        """Whether it is about a tensor of this name."""
        return name.endswith(self.part) if self.at_end else self.part in name


def _squeezed(shape: Shape, heads: int = 0) -> Shape:
    return tuple(size for size in shape if size != 1)


def _with_one(shape: Shape, heads: int) -> Shape:
    return (*_squeezed(shape), 1)


def _alone(shape: Shape, heads: int) -> Shape:
    return (math.prod(shape), 1, 1)


def _by_head(shape: Shape, heads: int) -> Shape:
    count = math.prod(shape)
    if not heads or count % heads:
        raise ValueError(f"has {count} values, which {heads or None} heads cannot share")
    return (heads, count // heads, 1)


def _swapped(shape: Shape, heads: int = 0) -> Shape:
    if len(shape) < 2:
        raise ValueError(f"should be a matrix, and is of shape {list(shape)}")
    return (*shape[:-2], shape[-1], shape[-2])


def _squeezed_and_swapped(shape: Shape, heads: int) -> Shape:
    return _swapped(_squeezed(shape))


def _row(shape: Shape) -> Shape:
    return (1, 1, math.prod(shape))


def _flat(shape: Shape) -> Shape:
    return _squeezed(shape) or (math.prod(shape),)


def _two(shape: Shape) -> Shape:
    return shape[:2] if len(shape) > 1 else _flat(shape)


def _unswapped(shape: Shape) -> Shape:
    return _swapped(shape) if len(shape) > 1 else _row(shape)


def _same(shape: Shape) -> Shape:
    return shape


def _low_rank(there: Callable[[Shape, int], Shape], *parts: str) -> tuple[TensorRule, ...]:
    return tuple(TensorRule(f".att.{part}", there, _unswapped, swapped=True, at_end=True) for part in parts)


_BONUS = TensorRule(".time_faaaa", _with_one, _flat)
_FIRST = TensorRule(".time_first", _alone, _flat, EXP)

#: By version; the first that fits counts, and those of COMMON come last.
RULES: Mapping[str, tuple[TensorRule, ...]] = {
    "4": (TensorRule(".time_decay", _squeezed, _flat, NEGATIVE_EXP), TensorRule(".time_first", _squeezed, _flat)),
    "5.0": (TensorRule(".time_decay", _alone, _flat, EXP_NEGATIVE_EXP), _FIRST, _BONUS),
    "5.1": (TensorRule(".time_decay", _with_one, _flat, EXP_NEGATIVE_EXP), _FIRST, _BONUS),
    "5.2": (
        TensorRule(".time_decay", _with_one, _two, EXP_NEGATIVE_EXP),
        TensorRule(".time_first", _alone, _two, EXP),
        TensorRule(".time_faaaa", _with_one, _two),
    ),
    "6": (
        *_low_rank(_squeezed_and_swapped, "time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"),
        TensorRule(".time_faaaa", _with_one, _two),
        TensorRule(".time_decay", _by_head, _row, at_end=True),
    ),
    "7": _low_rank(_swapped, *(f"{x}{n}" for x in "wavg" for n in "12")),
}
COMMON = (
    TensorRule(".time_mix_", _squeezed, _row),
    TensorRule(".time_maa_", _squeezed, _row),
    TensorRule(".time_", _squeezed, _same),
)
PLAIN = TensorRule("", lambda shape, heads: shape, _same)


def joined_in(version: str | None) -> tuple[tuple[str, ...], str]:
    """See JOINED; ((), "") where nothing is joined."""
    return JOINED.get(version or "", ((), ""))


def rule_of(version: str | None, name: str) -> TensorRule:
    """What happens to the tensor of this name; of no version what is common to all."""
    return next((rule for rule in (*RULES.get(version or "", ()), *COMMON) if rule.fits(name)), PLAIN)
