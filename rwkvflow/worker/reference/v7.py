"""Version 7: the state is rewritten by a generalized delta rule; later layers mix in the first layer's values."""

from __future__ import annotations

import math

import numpy as np

from rwkvflow.worker.reference.half import exact, like
from rwkvflow.worker.reference.primitives import (
    Array,
    Get,
    State,
    f32,
    head_norm,
    linear,
    row,
    shift,
    sigmoid,
    squared_relu,
)


def time_mix(
    get: Get,
    x: Array,
    state: State,
    heads: int,
    eps: float,
    v_first: Array | None,
    *,
    gated: bool = True,
    normed: bool = True,
) -> tuple[Array, Array]:
    """x [T, C] after ln1; returns ([T, C], the values of layer 0). v_first is None in layer 0, which makes them.

    `gated` and `normed` are so in version 7: what is read out is normed by head, and multiplied with a gate.

    S_t = S_{t-1} · diag(w_t) + (S_{t-1} · -κ_t)(κ_t · a_t)ᵀ + v_t k_tᵀ, y_t = S_t r_t; S [H, N, N] is value by key.
    w = exp(-exp(-0.5) · sigmoid(w0 + tanh(x_w w1) w2)) lies between 0.545 and 1.
    """
    tokens = len(x)
    delta = shift(x, state, "att") - x
    xr, xw, xk, xv, xa = (x + delta * row(get(f"att.x_{letter}")) for letter in "rwkva")
    r = linear(xr, get("att.receptance.weight"))
    k = linear(xk, get("att.key.weight"))
    v = linear(xv, get("att.value.weight"))
    raw = row(get("att.w0")) + f32(np.tanh(xw @ get("att.w1"))) @ get("att.w2")
    w = f32(np.exp(np.float32(-math.exp(-0.5)) * sigmoid(exact(raw))))
    a = sigmoid(row(get("att.a0")) + (xa @ get("att.a1")) @ get("att.a2"))
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(row(get("att.v0")) + (xv @ get("att.v1")) @ get("att.v2"))

    def split(y: Array) -> Array:
        return y.reshape(tokens, heads, -1)

    raw_kappa = split(k * row(get("att.k_k")))
    kappa = exact(raw_kappa)
    kappa = like(x, kappa / np.maximum(np.sqrt(np.square(kappa).sum(-1, keepdims=True)), np.float32(1e-12)))
    k = k * (1 + (a - 1) * row(get("att.k_a")))
    out = _recurrence(split(r), split(w), split(k), split(v), kappa, split(a), state)
    y = head_norm(out, get("att.ln_x.weight"), get("att.ln_x.bias"), eps) if normed else out.reshape(tokens, -1)
    weight = (split(r) * split(k) * get("att.r_k").reshape(heads, -1)).sum(-1, keepdims=True)
    y = y + (weight * split(v)).reshape(tokens, -1)
    if gated:
        xg = x + delta * row(get("att.x_g"))
        y = y * (sigmoid(xg @ get("att.g1")) @ get("att.g2"))
    return linear(y, get("att.output.weight")), v_first


def _recurrence(r: Array, w: Array, k: Array, v: Array, kappa: Array, a: Array, state: State) -> Array:
    heads, size = k.shape[1:]
    given, r, k, v, kappa, a = r, exact(r), exact(k), exact(v), exact(kappa), exact(a)
    s = state.get("wkv")
    if s is None:
        s = np.zeros((heads, size, size), np.float32)
    out = np.empty_like(v)
    for t in range(len(k)):
        removed = s @ -kappa[t][:, :, None]
        s = s * w[t][:, None, :] + removed * (kappa[t] * a[t])[:, None, :] + v[t][:, :, None] * k[t][:, None, :]
        out[t] = (s @ r[t][:, :, None])[:, :, 0]
    state["wkv"] = s
    return like(given, out)


def channel_mix(get: Get, x: Array, state: State) -> Array:
    """x [T, C] after ln2; no gate in this version."""
    delta = shift(x, state, "ffn") - x
    k = linear(x + delta * row(get("ffn.x_k")), get("ffn.key.weight"))
    return linear(squared_relu(k, state), get("ffn.value.weight"))
