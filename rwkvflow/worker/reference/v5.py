"""Versions 5.0, 5.1 and 5.2: a matrix-valued state for each head, with a fixed decay.

5.0 has one decay a head, 5.1 adds the gate, 5.2 has a decay for each channel.
"""

from __future__ import annotations

import numpy as np

from rwkvflow.worker.reference.half import exact, like
from rwkvflow.worker.reference.primitives import Array, Get, State, head_norm, linear, mix, shift, silu


def time_mix(get: Get, x: Array, state: State, version: str, heads: int, eps: float, bonus_is_log: bool) -> Array:
    """x [T, C] after ln1; returns [T, C]. bonus_is_log: the file has `time_first` (a logarithm), not `time_faaaa`."""
    previous = shift(x, state, "att")
    size = get("att.key.weight").shape[0] // heads

    def projected(letter: str, name: str) -> Array:
        return linear(mix(x, previous, get(f"att.time_mix_{letter}")), get(f"att.{name}.weight"))

    r = projected("r", "receptance").reshape(-1, heads, size)
    k = projected("k", "key").reshape(-1, heads, size)
    v = projected("v", "value").reshape(-1, heads, size)
    decay = np.exp(-np.exp(get("att.time_decay"))).reshape(heads, -1)
    bonus = np.exp(get("att.time_first")) if bonus_is_log else get("att.time_faaaa")
    out = recurrence(r, k, v, np.broadcast_to(decay, k.shape), bonus.reshape(heads, -1), state)
    y = head_norm(out, get("att.ln_x.weight"), get("att.ln_x.bias"), eps)
    if version != "5.0":
        y = y * silu(projected("g", "gate"))
    return linear(y, get("att.output.weight"))


def recurrence(r: Array, k: Array, v: Array, decay: Array, bonus: Array, state: State) -> Array:
    """y_t = r_t (S_{t-1} + bonus · k_t v_tᵀ), S_t = decay_t · S_{t-1} + k_t v_tᵀ; decay and bonus act on k's channels.

    r, k, v, decay [T, H, N]; bonus [H, N] or [H, 1]; the state S is [H, N, N], key by value. Returns [T, H, N].
    """
    heads, size = k.shape[1:]
    given, r, k, v, decay = r, exact(r), exact(k), exact(v), exact(decay)
    s = state.get("wkv")
    if s is None:
        s = np.zeros((heads, size, size), np.float32)
    out = np.empty_like(v)
    for t in range(len(k)):
        product = k[t][:, :, None] * v[t][:, None, :]
        out[t] = (r[t][:, None, :] @ (s + bonus[:, :, None] * product))[:, 0]
        s = decay[t][:, :, None] * s + product
    state["wkv"] = s
    return like(given, out)
