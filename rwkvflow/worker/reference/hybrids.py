"""The hybrids: a Qwen2 whose attention was replaced by the time mix of version 7 (arwkv7) or 6 (rwkv6qwen2).

By the code of their makers: wkv.py and modeling_rwkv_hybrid.py of RWKV-Red-Team's ARWKV models, and
modeling_rwkv6qwen2.py of recursal's QRWKV-6 models (RADLADS: recursal/RADLADS-paper). A layer is

    x = x + time_mix(rms_norm(x));  x = x + ffn(rms_norm(x))

and no tokens are shifted before the feed-forward. arwkv7 is version 7's time mix, but it may have no gate, and has a
head norm only where its config.json says so.
"""

from __future__ import annotations

import numpy as np

from rwkvflow.worker.reference.half import exact, like
from rwkvflow.worker.reference.primitives import Array, Get, State, linear, note_peaks, row, sigmoid, silu
from rwkvflow.worker.reference.v6 import log_decay, mixed_inputs

LEAST_LOG_DECAY = np.float32(-5)  # QRWKV-6's code stops there; llama.cpp does not, and trained models stay above it


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x [..., C] divided by the root of its mean square, times weight [C]."""
    values = exact(x)
    return like(x, values / np.sqrt(np.square(values).mean(-1, keepdims=True) + np.float32(eps)) * weight)


def time_mix_6(get: Get, x: Array, state: State, heads: int, bias: frozenset[str]) -> Array:
    """rwkv6qwen2: x [T, C] after ln1; returns [T, C]. `bias`: which of receptance, key and value have one.

    S_t = diag(w_t) · S_{t-1} + (k_t ∗ (1 - w_t)) v_tᵀ, y_t = S_tᵀ r_t / √N; S [H, N, N] is key by value. Several heads
    share keys and values. No bonus and no head norm; the gate is a sigmoid.
    """
    tokens = len(x)
    mixed = mixed_inputs(get, x, state, "rkvwg")

    def projected(name: str) -> Array:
        found = linear(mixed[name[0]], get(f"att.{name}.weight"))
        return found + row(get(f"att.{name}.bias")) if name in bias else found

    r = projected("receptance").reshape(tokens, heads, -1)
    size = r.shape[-1]
    k, v = (_repeated(projected(name).reshape(tokens, -1, size), heads) for name in ("key", "value"))
    w = np.exp(np.maximum(log_decay(get, mixed["w"]), LEAST_LOG_DECAY)).reshape(tokens, heads, size)
    out = _recurrence(r, k * like(x, 1 - w), v, w, state)
    return linear(out * sigmoid(linear(mixed["g"], get("att.gate.weight"))), get("att.output.weight"))


def _repeated(x: Array, heads: int) -> Array:
    """[T, K, N] to [T, H, N]: heads that follow one another have the same."""
    return np.repeat(x, heads // x.shape[1], 1)


def _recurrence(r: Array, k: Array, v: Array, w: Array, state: State) -> Array:
    """[T, H, N] each; returns [T, H · N]."""
    tokens, heads, size = r.shape
    given, r, k, v = r, exact(r), exact(k), exact(v)
    s = state.get("wkv")
    if s is None:
        s = np.zeros((heads, size, size), np.float32)
    out = np.empty_like(v)
    for t in range(tokens):
        s = s * w[t][:, :, None] + k[t][:, :, None] * v[t][:, None, :]
        out[t] = (r[t][:, None, :] @ s)[:, 0] * np.float32(size**-0.5)
    state["wkv"] = s
    return like(given, out).reshape(tokens, -1)


def feed_forward(get: Get, x: Array, state: State) -> Array:
    """x [T, C] after ln2."""
    hidden = silu(linear(x, get("ffn.gate.weight"))) * linear(x, get("ffn.up.weight"))
    return linear(note_peaks(hidden, state), get("ffn.down.weight"))
