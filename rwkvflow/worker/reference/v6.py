"""Version 6: token shift and decay depend on the data, through low-rank matrices."""

from __future__ import annotations

import numpy as np

from rwkvflow.worker.reference.half import exact
from rwkvflow.worker.reference.primitives import (
    Array,
    Get,
    State,
    head_norm,
    linear,
    row,
    shift,
    sigmoid,
    silu,
    squared_relu,
)
from rwkvflow.worker.reference.v5 import recurrence


def mixed_inputs(get: Get, x: Array, state: State, order: str) -> dict[str, Array]:
    """What each of five matrices is given, by its letter: x [T, C] mixed with the token before, as the data say.

    `order`: of their letters in time_maa_w2 [5, D, C].
    """
    delta = shift(x, state, "att") - x
    low = np.tanh((x + delta * row(get("att.time_maa_x"))) @ get("att.time_maa_w1"))
    shifts = low.reshape(len(x), 5, -1).swapaxes(0, 1) @ get("att.time_maa_w2")  # [T, 5·D] to [5, T, D]
    return {
        letter: x + delta * (row(get(f"att.time_maa_{letter}")) + shifts[index]) for index, letter in enumerate(order)
    }


def log_decay(get: Get, x: Array) -> Array:
    """The logarithm of what is kept of the state, below 0: x [T, C], mixed for it; returns [T, C]."""
    log_log = row(get("att.time_decay")) + np.tanh(x @ get("att.time_decay_w1")) @ get("att.time_decay_w2")
    kept: Array = -np.exp(exact(log_log))
    return kept


def time_mix(get: Get, x: Array, state: State, heads: int, eps: float) -> Array:
    """x [T, C] after ln1; returns [T, C]."""
    tokens = len(x)
    mixed = mixed_inputs(get, x, state, "wkvrg")
    size = get("att.key.weight").shape[0] // heads
    r = linear(mixed["r"], get("att.receptance.weight")).reshape(tokens, heads, size)
    k = linear(mixed["k"], get("att.key.weight")).reshape(tokens, heads, size)
    v = linear(mixed["v"], get("att.value.weight")).reshape(tokens, heads, size)
    g = silu(linear(mixed["g"], get("att.gate.weight")))
    decay = np.exp(log_decay(get, mixed["w"])).reshape(tokens, heads, size)
    out = recurrence(r, k, v, decay, get("att.time_faaaa").reshape(heads, size), state)
    y = head_norm(out, get("att.ln_x.weight"), get("att.ln_x.bias"), eps)
    return linear(y * g, get("att.output.weight"))


def channel_mix(get: Get, x: Array, state: State) -> Array:
    """x [T, C] after ln2."""
    delta = shift(x, state, "ffn") - x
    r = sigmoid(linear(x + delta * row(get("ffn.time_maa_r")), get("ffn.receptance.weight")))
    k = linear(x + delta * row(get("ffn.time_maa_k")), get("ffn.key.weight"))
    return r * linear(squared_relu(k, state), get("ffn.value.weight"))
