"""web-rwkv's quantized blocks: what its shaders say, one value at a time, against the arrays that are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.formats.prefab import blocks
from rwkvflow.worker.formats.prefab.run import NORMAL

F = np.float32
Values = np.ndarray[Any, Any]


def nf4_of_the_shader(values: Values) -> list[int]:
    """quant_mat_nf4.wgsl, a value after the other."""
    out = []
    for start in range(0, len(values), 64):
        block = values[start : start + 64].astype(F)
        a = F(1) / np.abs(block).max()
        for value in block:
            x, least, index = value * a, F(1), 0
            for j, q in enumerate(np.array(blocks.LEVELS, F)):
                if np.abs(q - x) <= least:
                    least, index = np.abs(q - x), j
            out.append(index)
    return out


def int8_of_the_shader(values: Values) -> list[int]:
    """quant_mat_int8.wgsl."""
    out = []
    for start in range(0, len(values), 128):
        block = values[start : start + 128].astype(F)
        least, most = block.min(), block.max()
        for value in block:
            x = min(max((value - least) / (most - least), F(0)), F(1))
            out.append(int(np.floor(F(0.5) + F(255) * x)))
    return out


def random(seed: int, count: int, kind: str) -> Values:
    source = np.random.default_rng(seed)
    if kind == "normal":
        return source.normal(0, 0.03, count).astype(np.float16)
    if kind == "ties":  # few distinct values: blocks with many of the same, and such as lie between two levels
        return source.choice(np.array([-1, -0.75, -0.5, -0.0625, 0, 0.125, 0.5, 1], np.float16), count)
    return (source.normal(0, 1, count) * 2.0 ** source.integers(-24, 14, count)).astype(np.float16)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["normal", "ties", "wide"]))
def test_blocks_are_those_of_the_shaders(seed: int, kind: str) -> None:
    values = random(seed, 256, kind)
    packed = blocks.nf4(values)
    with np.errstate(all="ignore"):
        assert np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).tolist() == nf4_of_the_shader(values)
        assert blocks.int8(values).tolist() == int8_of_the_shader(values)
    assert np.array_equal(blocks.nf4_scales(values), np.abs(values.reshape(-1, 64)).max(axis=1))
    assert blocks.int8_ends(values).dtype == blocks.nf4_scales(values).dtype == np.float16


def test_the_levels_are_qloras() -> None:
    assert np.array_equal(np.array(blocks.LEVELS, F), NORMAL)
    assert np.all(np.diff(blocks._thresholds()) > 0)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_a_block_of_one_value(value: float) -> None:
    values = np.full(128, value, np.float16)
    assert set(blocks.int8(values).tolist()) == {0}  # and the minimum is the value
    level = {0.0: 0, 0.5: 15, -3.0: 0}[value]
    assert set(blocks.nf4(values).tolist()) == {level * 17}
