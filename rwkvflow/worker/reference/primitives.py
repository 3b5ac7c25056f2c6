"""What all versions share: norms, activations, the token shift, products with row-major weights. All fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.model.versions import LAYER_NORM_EPS

Array = NDArray[np.float32]
State = dict[str, Array]  # what one layer carries from token to token
Get = Callable[[str], Array]  # a tensor of the current layer by its name below "blocks.{i}."


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = LAYER_NORM_EPS) -> Array:
    """Normalizes the last dimension of x [..., C]; weight and bias [C]."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return f32(centred / np.sqrt(variance + np.float32(eps)) * weight + bias)


def head_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Group norm with a head as the group: x [T, H, N], weight and bias [H·N]; returns [T, H·N]."""
    tokens, heads, size = x.shape
    return layer_norm(x, weight.reshape(heads, size), bias.reshape(heads, size), eps).reshape(tokens, -1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return f32(np.exp(-np.logaddexp(np.float32(0), -x)))


def silu(x: Array) -> Array:
    """x · sigmoid(x)."""
    return x * sigmoid(x)


def linear(x: Array, weight: Array) -> Array:
    """x [T, in] times a weight [out, in] as PyTorch's Linear stores it."""
    return x @ weight.T


def squared_relu(x: Array, state: State) -> Array:
    """max(x, 0)², of which the layer keeps the largest value: what is the first to pass what fp16 holds."""
    found = np.square(np.maximum(x, 0))
    state["square"] = found.max(initial=0)
    return f32(found)


def row(tensor: Array) -> Array:
    """A [C] view of a tensor that is stored as [1, 1, C] or [C]."""
    return tensor.reshape(-1)


def shift(x: Array, state: State, key: str) -> Array:
    """Each token's predecessor [T, C]; the first one's comes from the state, which then holds the last token."""
    first = state.get(key)
    if first is None:
        first = np.zeros_like(x[0])
    state[key] = x[-1].copy()
    return np.concatenate([first[None], x[:-1]])


def mix(x: Array, previous: Array, share: Array) -> Array:
    """Versions 4 and 5: `share` of the token and the rest of its predecessor."""
    share = row(share)
    return x * share + previous * (1 - share)


def f32(x: Any) -> Array:
    """The same values as float32 (no copy where they are)."""
    return np.asarray(x, np.float32)
