"""The names that llama.cpp's files give a model's tensors: those of its convert_hf_to_gguf.py (conversion/rwkv.py)."""

from __future__ import annotations

from collections.abc import Mapping

_FUSED_6, _FUSED_7 = (tuple(f"att.time_maa_{x}" for x in "wkvrg"), tuple(f"att.x_{x}" for x in "rwkvag"))
#: What becomes one tensor, in its order; an arwkv7 without a gate has no x_g.
FUSED = {"6": _FUSED_6, "7": _FUSED_7, "rwkv6qwen2": _FUSED_6, "arwkv7": _FUSED_7}
GLOBAL = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
COMMON = {
    **{f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("ln1", "attn_norm"), ("ln2", "attn_norm_2"))
       for part in ("weight", "bias")},
    **{f"att.ln_x.{part}": f"time_mix_ln.{part}" for part in ("weight", "bias")},
    **{f"att.{x}.weight": f"time_mix_{x}.weight" for x in ("receptance", "key", "value", "output")},
    **{f"ffn.{x}.weight": f"channel_mix_{x}.weight" for x in ("key", "value")},
}  # fmt: skip
_OF_6 = {
    "att.gate.weight": "time_mix_gate.weight",
    "att.time_maa_x": "time_mix_lerp_x.weight",
    "att.time_maa_w1": "time_mix_w1.weight",
    "att.time_maa_w2": "time_mix_w2.weight",
    "att.time_decay": "time_mix_decay.weight",
    "att.time_decay_w1": "time_mix_decay_w1.weight",
    "att.time_decay_w2": "time_mix_decay_w2.weight",
}
_OF_7 = {
    **{f"att.{x}{n}": f"time_mix_{x}{n}.weight" for x in "wavg" for n in "012"},
    "att.k_k": "time_mix_k_k.weight",
    "att.k_a": "time_mix_k_a.weight",
    "att.r_k": "time_mix_r_k.weight",
}
#: The hybrids': other norms before the feed-forward, which is gated; rwkv6qwen2 has biases and no head norm.
_OF_HYBRIDS = {
    "ln1.weight": "attn_norm.weight",
    "ln2.weight": "ffn_norm.weight",
    **{f"att.{x}.weight": f"time_mix_{x}.weight" for x in ("receptance", "key", "value", "output")},
    **{f"ffn.{x}.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")},
}
BLOCK: Mapping[str, Mapping[str, str]] = {
    "6": {
        **COMMON,
        **_OF_6,
        "att.time_faaaa": "time_mix_first.weight",
        "ffn.receptance.weight": "channel_mix_receptance.weight",
        "ffn.time_maa_k": "channel_mix_lerp_k.weight",
        "ffn.time_maa_r": "channel_mix_lerp_r.weight",
    },
    "7": {
        **COMMON,
        **_OF_7,
        "ffn.x_k": "channel_mix_lerp_k.weight",
    },
    "rwkv6qwen2": {
        **_OF_HYBRIDS,
        **_OF_6,
        **{f"att.{x}.bias": f"time_mix_{x}.bias" for x in ("receptance", "key", "value")},
    },
    "arwkv7": {**_OF_HYBRIDS, **_OF_7, **{f"att.ln_x.{x}": f"time_mix_ln.{x}" for x in ("weight", "bias")}},
}
TRANSPOSED = frozenset(
    {*(f"att.time_maa_w{n}" for n in "12"), *(f"att.time_decay_w{n}" for n in "12")}
    | {f"att.{x}{n}" for x in "wavg" for n in "12"}
)
