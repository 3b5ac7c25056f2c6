"""What all versions share: norms, activations, the token shift, products with row-major weights.

All in fp32, and where a pass is begun with values in fp16 (rwkvflow.worker.reference.half), what a runtime in fp16
stores is rounded to it, while sums, exponents and the states of versions 4 to 7 are kept in fp32, as runtimes do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.model.versions import LAYER_NORM_EPS
from rwkvflow.worker.reference.half import exact, like

Array = NDArray[np.float32]
State = dict[str, Array]  # what one layer carries from token to token
Get = Callable[[str], Array]  # a tensor of the current layer by its name below "blocks.{i}."
BLOCK = 32  # values that ggml quantizes together


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = LAYER_NORM_EPS) -> Array:
    """Normalizes the last dimension of x [..., C]; weight and bias [C]."""
    values = exact(x)
    centred = values - values.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return like(x, centred / np.sqrt(variance + np.float32(eps)) * weight + bias)


def head_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Group norm with a head as the group: x [T, H, N], weight and bias [H·N]; returns [T, H·N]."""
    tokens, heads, size = x.shape
    return layer_norm(x, weight.reshape(heads, size), bias.reshape(heads, size), eps).reshape(tokens, -1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return like(x, np.exp(-np.logaddexp(np.float32(0), -exact(x))))


def silu(x: Array) -> Array:
    """x · sigmoid(x)."""
    return x * sigmoid(x)


def linear(x: Array, weight: Array) -> Array:
    """x [T, in] times a weight [out, in] as PyTorch's Linear stores it."""
    return x @ weight.T


def squared_relu(x: Array, state: State) -> Array:
    """max(x, 0)², the first to pass what fp16 holds."""
    return note_peaks(np.square(np.maximum(x, 0)), state)


def note_peaks(found: Array, state: State) -> Array:
    """What the second matrix of a feed-forward is given: the layer keeps the largest, and the largest sum of BLOCK."""
    values = np.abs(exact(found))
    state["square"] = values.max(initial=0)
    whole = values.shape[-1] // BLOCK * BLOCK
    state["block"] = values[..., :whole].reshape(-1, BLOCK).sum(-1).max(initial=0)
    return found


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
    return x * share + previous * like(x, 1 - share)


def f32(x: Any) -> Array:
    """The same values as float32 (no copy where they are)."""
    return np.asanyarray(x, np.float32)
