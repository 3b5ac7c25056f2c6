"""exp against high precision, and against what rwkv.cpp's converter uses."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.model.exact import NEAR, STEP_HIGH, STEP_INVERSE, STEP_LOW, STEPS, exp32

CONTEXT = Context(prec=60)
LN2 = CONTEXT.ln(Decimal(2))


def error(x: np.float32) -> Decimal:
    """Of exp32(x), in units of the last place of the result."""
    got = exp32(np.array([x], np.float32))[0]
    exact = CONTEXT.exp(Decimal(float(x)))
    unit = Decimal(float(np.spacing(np.float32(float(exact)))))
    return abs(Decimal(float(got)) - exact) / unit


@settings(max_examples=400, deadline=None)
@given(st.floats(-87.25, 88.5, width=32))
def test_within_its_bound(x: float) -> None:
    assert error(np.float32(x)) < Decimal("0.57")


@settings(max_examples=200, deadline=None)
@given(st.floats(-103.875, -87.375, width=32) | st.floats(87.375, 88.625, width=32))
def test_correctly_rounded_near_the_limits(x: float) -> None:
    assert error(np.float32(x)) <= Decimal("0.5000001")


def test_constants_are_what_they_are_called() -> None:
    step = LN2 / STEPS
    assert np.float32(STEP_INVERSE) == STEP_INVERSE == np.float32(float(1 / step))
    assert np.float32(STEP_HIGH) == STEP_HIGH
    assert int(STEP_HIGH * 2**16) == STEP_HIGH * 2**16  # 9 bits: products with counts below 2^15 are exact
    assert np.float32(STEP_LOW) == STEP_LOW == np.float32(float(step - Decimal(STEP_HIGH)))
    assert np.float32(float(LN2 * 126)) == NEAR


def test_special_values() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 88.75, 1e30, -104.0, -1e30, 1e-45], np.float32)
    got = exp32(x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([1, 1, np.inf, 0, np.nan, np.inf, np.inf, 0, 0, 1], np.float32))


def test_shape_and_order_do_not_matter() -> None:
    x = np.random.default_rng(0).uniform(-100, 88, (7, 5, 3)).astype(np.float32)
    together = exp32(x)
    assert together.shape == x.shape
    one_by_one = np.array([exp32(np.asarray(v)) for v in x.reshape(-1)], np.float32).reshape(x.shape)
    assert together.tobytes() == one_by_one.tobytes()
    assert exp32(x.transpose(2, 0, 1)).tobytes() == np.ascontiguousarray(together.transpose(2, 0, 1)).tobytes()


def test_these_bits_and_no_others() -> None:
    """Bits that every machine has to give; the last three are not the nearest float32."""
    cases: dict[float, str] = {
        1.0: "402df854",
        -5.0: "3bdcc9ff",
        10.5: "470ddb81",
        0.376953125: "3fba9a5f",
        -7.703125: "39ecabce",
        -7.171875: "3a494baa",
    }
    got = {x: exp32(np.array([x], np.float32)).view("<u4")[0] for x in cases}
    assert {x: f"{bits:08x}" for x, bits in got.items()} == cases


def test_torch_is_within_what_both_promise() -> None:
    """torch asks MKL or SLEEF, each below 1 unit in the last place, and each with other bits on other processors."""
    torch: Any = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-105, 90, 1 << 18), rng.uniform(-9, 3, 1 << 18)]).astype(np.float32)
    ours, theirs = exp32(x), torch.exp(torch.from_numpy(x)).numpy()
    assert np.array_equal(np.isfinite(ours), np.isfinite(theirs))
    finite = np.isfinite(ours)
    unit = np.spacing(np.maximum(ours, theirs)[finite]).astype(np.float64)
    assert (np.abs(ours[finite].astype(np.float64) - theirs[finite]) <= 1.57 * unit).all()
