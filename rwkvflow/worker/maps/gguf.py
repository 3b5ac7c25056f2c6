"""The names that llama.cpp's files give a model's tensors: those of its convert_hf_to_gguf.py (conversion/rwkv.py)."""

from __future__ import annotations

from collections.abc import Mapping

FUSED = {"6": tuple(f"att.time_maa_{x}" for x in "wkvrg"), "7": tuple(f"att.x_{x}" for x in "rwkvag")}
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
BLOCK: Mapping[str, Mapping[str, str]] = {
    "6": {
        **COMMON,
        "att.gate.weight": "time_mix_gate.weight",
        "att.time_maa_x": "time_mix_lerp_x.weight",
        "att.time_maa_w1": "time_mix_w1.weight",
        "att.time_maa_w2": "time_mix_w2.weight",
        "att.time_decay": "time_mix_decay.weight",
        "att.time_decay_w1": "time_mix_decay_w1.weight",
        "att.time_decay_w2": "time_mix_decay_w2.weight",
        "att.time_faaaa": "time_mix_first.weight",
        "ffn.receptance.weight": "channel_mix_receptance.weight",
        "ffn.time_maa_k": "channel_mix_lerp_k.weight",
        "ffn.time_maa_r": "channel_mix_lerp_r.weight",
    },
    "7": {
        **COMMON,
        **{f"att.{x}{n}": f"time_mix_{x}{n}.weight" for x in "wavg" for n in "012"},
        "att.k_k": "time_mix_k_k.weight",
        "att.k_a": "time_mix_k_a.weight",
        "att.r_k": "time_mix_r_k.weight",
        "ffn.x_k": "channel_mix_lerp_k.weight",
    },
}
TRANSPOSED = frozenset(
    {*(f"att.time_maa_w{n}" for n in "12"), *(f"att.time_decay_w{n}" for n in "12")}
    | {f"att.{x}{n}" for x in "wavg" for n in "12"}
)
