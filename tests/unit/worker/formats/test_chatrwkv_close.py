"""What the rwkv package writes has other bits on other processors: bounds from what the libraries promise, no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rwkvflow.worker.formats.chatrwkv.run import SMALLEST_NORMAL, UNITS, _close
from rwkvflow.worker.model.exact import exp32

Array = NDArray[np.float32]
TYPES = ("f32", "f32")


def any_exp(x: NDArray[Any], up: NDArray[Any]) -> Array:
    """Some library's exp: each value less than a unit in the last place off, up or down as `up` says."""
    exact = np.exp(x.astype(np.float64))
    down = exact.astype(np.float32)
    down = np.where(down > exact, np.nextafter(down, np.float32(0)), down)
    return np.where(up & (down < exact), np.nextafter(down, np.float32(np.inf)), down).astype(np.float32)


WRITTEN: dict[tuple[str, str], Callable[[Callable[[Array], Array], Array], Array]] = {
    ("4", "blocks.0.att.time_decay"): lambda exp, x: -exp(x),
    ("5.1", "blocks.0.att.time_decay"): lambda exp, x: exp(-exp(x)),
    ("5.2", "blocks.0.att.time_decay"): lambda exp, x: exp(-exp(x)),
    ("5.0", "blocks.0.att.time_first"): lambda exp, x: exp(x),
}


@pytest.mark.parametrize(("version", "name"), WRITTEN)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_processors_exp_is_close(version: str, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-9, 4, 512).astype(np.float32)
    ours = WRITTEN[version, name](exp32, x)
    theirs = WRITTEN[version, name](lambda v: any_exp(v, rng.random(v.shape) < 0.5), x)
    assert (ours != theirs).any()
    assert _close(name, (ours, theirs), TYPES, version)


@pytest.mark.parametrize(("version", "name"), WRITTEN)
def test_what_no_exp_gives_is_not(version: str, name: str) -> None:
    x = np.linspace(-6, 1, 256, dtype=np.float32)
    right = WRITTEN[version, name](exp32, x)
    wrong = right.copy()
    wrong[17] *= np.float32(1 + 2.0**-18)
    assert not _close(name, (right, wrong), TYPES, version)
    wrong[17] = np.nan
    assert not _close(name, (right, wrong), TYPES, version)
    assert not _close(name, (np.zeros_like(right), right), TYPES, version)


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6"])
@pytest.mark.parametrize("name", ["blocks.0.att.key.weight", "blocks.0.ln1.weight", "blocks.0.att.time_mix_k"])
def test_what_went_through_no_function_is_equal_or_wrong(version: str, name: str) -> None:
    a = np.linspace(1, 2, 64, dtype=np.float32)
    assert _close(name, (a, a.copy()), TYPES, version)
    assert not _close(name, (a, np.nextafter(a, np.float32(9))), TYPES, version)
    if version == "6":
        assert not _close("blocks.0.att.time_decay", (a, np.nextafter(a, np.float32(9))), TYPES, version)


@pytest.mark.parametrize("checkpoint", UNITS)
@pytest.mark.parametrize("stored", UNITS)
def test_the_embedding_is_close_in_the_coarser_of_both_types(checkpoint: str, stored: str) -> None:
    a = np.linspace(1, 2, 64, dtype=np.float32)
    unit = max(UNITS[checkpoint], UNITS[stored])
    assert _close("emb.weight", (a, a * np.float32(1 + 0.99 * unit)), (checkpoint, stored), "4")
    assert not _close("emb.weight", (a, a * np.float32(1 + 4 * unit)), (checkpoint, stored), "4")


def test_what_is_lost_below_the_normal_numbers_does_not_count() -> None:
    a = np.array([0.0, SMALLEST_NORMAL / 4], np.float32)
    assert _close("blocks.0.att.time_decay", (a, a[::-1].copy()), TYPES, "5.2")
