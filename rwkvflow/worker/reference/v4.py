"""Version 4: a weighted average over the past for each channel."""

from __future__ import annotations

import numpy as np

from rwkvflow.worker.reference.half import exact, like
from rwkvflow.worker.reference.primitives import Array, Get, State, f32, linear, mix, row, shift, sigmoid, squared_relu


def time_mix(get: Get, x: Array, state: State) -> Array:
    """x [T, C] after ln1; returns [T, C] to be added to the residual.

    wkv_t = (Σ_{i<t} exp(-(t-1-i)·w + k_i)·v_i + exp(u + k_t)·v_t) / (the same sum without v), w = exp(time_decay).
    Numerator and denominator are kept relative to exp(the largest exponent so far), so that no exp overflows.
    """
    previous = shift(x, state, "att")
    r = sigmoid(linear(mix(x, previous, get("att.time_mix_r")), get("att.receptance.weight")))
    k = exact(linear(mix(x, previous, get("att.time_mix_k")), get("att.key.weight")))
    v = exact(linear(mix(x, previous, get("att.time_mix_v")), get("att.value.weight")))
    decay, first = -np.exp(row(get("att.time_decay"))), row(get("att.time_first"))
    if "numerator" not in state:
        state["numerator"] = state["denominator"] = np.zeros_like(k[0])
        state["exponent"] = np.full_like(k[0], -1e30)
    above, below, largest = state["numerator"], state["denominator"], state["exponent"]
    wkv = np.empty_like(v)
    for t in range(len(x)):
        now = first + k[t]
        top = np.maximum(largest, now)
        old, new = np.exp(largest - top), np.exp(now - top)
        wkv[t] = (old * above + new * v[t]) / (old * below + new)
        past = largest + decay
        largest = np.maximum(past, k[t])
        old, new = np.exp(past - largest), np.exp(k[t] - largest)
        above, below = old * above + new * v[t], old * below + new
    state["numerator"], state["denominator"], state["exponent"] = f32(above), f32(below), f32(largest)
    return linear(r * like(x, wkv), get("att.output.weight"))


def channel_mix(get: Get, x: Array, state: State) -> Array:
    """x [T, C] after ln2; the gated squared-ReLU network of versions 4 and 5."""
    previous = shift(x, state, "ffn")
    r = sigmoid(linear(mix(x, previous, get("ffn.time_mix_r")), get("ffn.receptance.weight")))
    k = linear(mix(x, previous, get("ffn.time_mix_k")), get("ffn.key.weight"))
    return r * linear(squared_relu(k, state), get("ffn.value.weight"))
