"""The names that Hugging Face models give an RWKV model's tensors, and what they are called by its author.

transformers' RwkvForCausalLM (4), the Rwkv5ForCausalLM and Rwkv6ForCausalLM of the author's Hugging Face models, and
flash-linear-attention's RWKV7ForCausalLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_OLD = re.compile(r"rwkv\.blocks\.([0-9]{1,9})\.(.+)")
_FLA = re.compile(r"model\.layers\.([0-9]{1,9})\.(.+)")

OLD = {"emb": "rwkv.embeddings", "ln_out": "rwkv.ln_out", "head": "head"}
GLOBAL = {
    "4": OLD,
    "6": OLD,
    "7": {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"},
}
OLD_NORMS = {"ln0": "pre_ln", "ln1": "ln1", "ln2": "ln2"}
NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
MIXES = {"k": "key", "v": "value", "r": "receptance"}
ATT_6 = frozenset(
    {*(f"time_maa_{x}" for x in ("x", "w", "k", "v", "r", "g", "w1", "w2")), "time_faaaa"}
    | {"time_decay", "time_decay_w1", "time_decay_w2", "ln_x.weight", "ln_x.bias"}
    | {f"{x}.weight" for x in ("receptance", "key", "value", "output", "gate")}
)
FFN_6 = frozenset({"time_maa_k", "time_maa_r", "key.weight", "value.weight", "receptance.weight"})
LORA = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}


def _name_6(layer: str, part: str) -> str | None:
    stem, _, end = part.partition(".")
    if stem in OLD_NORMS:
        return f"rwkv.blocks.{layer}.{OLD_NORMS[stem]}.{end}"
    if stem == "att":
        return f"rwkv.blocks.{layer}.attention.{end}" if end in ATT_6 else None
    return f"rwkv.blocks.{layer}.feed_forward.{end}" if stem == "ffn" and end in FFN_6 else None


def _name_4(layer: str, part: str) -> str | None:
    stem, _, end = part.partition(".")
    if stem in OLD_NORMS:
        return f"rwkv.blocks.{layer}.{OLD_NORMS[stem]}.{end}"
    if stem not in ("att", "ffn"):
        return None
    inner = {"att": "attention", "ffn": "feed_forward"}[stem]
    if end.startswith("time_mix_"):
        end = "time_mix_" + MIXES.get(end.removeprefix("time_mix_"), "")
    known = ("time_decay", "time_first", *(f"time_mix_{x}" for x in MIXES.values()))
    matrices = (*(f"{x}.weight" for x in MIXES.values()), "output.weight")
    return f"rwkv.blocks.{layer}.{inner}.{end}" if end in (*known, *matrices) else None


def _name_7(layer: str, part: str) -> str | None:
    stem, _, end = part.partition(".")
    start = f"model.layers.{layer}."
    if stem in NORMS:
        return f"{start}{NORMS[stem]}.{end}"
    if stem == "ffn":
        return f"{start}ffn.{end}" if end in ("x_k", "key.weight", "value.weight") else None
    if stem != "att":
        return None
    if len(end) == 2 and end[0] in "wavg" and end[1] in LORA:
        # Layer 0 mixes in no values of a layer before it: fla has no such parameters there.
        return None if layer == "0" and end[0] == "v" else f"{start}attn.{end[0]}_lora.{LORA[end[1]]}"
    inner, _, last = end.partition(".")
    if inner in PROJECTIONS:
        return f"{start}attn.{PROJECTIONS[inner]}.{last}"
    return f"{start}attn.{end}" if end in (*(f"x_{x}" for x in "rwkvag"), "k_k", "k_a", "r_k") else None


#: By version: what a layer's tensor is called, of the layer and the rest of its name; None where there is no place.
NAME_OF: Mapping[str, Callable[[str, str], str | None]] = {"4": _name_4, "6": _name_6, "7": _name_7}


def is_theirs(name: str) -> bool:
    """Whether a tensor of this name is a Hugging Face model's."""
    return _OLD.fullmatch(name) is not None or _FLA.fullmatch(name) is not None


def own_name(theirs: str) -> tuple[str, str]:
    """The author's name of a tensor, and how it differs: "" (not), "transposed", or "row" for [n] that is [1, 1, n].

    A name that is none of Hugging Face's stays what it is.
    """
    stem, _, end = theirs.rpartition(".")
    for names in (OLD, GLOBAL["7"]):
        for ours, name in names.items():
            if stem == name and (stem != "head" or end == "weight"):
                return f"{ours}.{end}", ""
    if match := _OLD.fullmatch(theirs):
        return f"blocks.{int(match[1])}.{_old_part(match[2])}", ""
    if match := _FLA.fullmatch(theirs):
        part, change = _fla_part(match[2])
        return f"blocks.{int(match[1])}.{part}", change
    return theirs, ""


def _old_part(part: str) -> str:
    stem, _, end = part.partition(".")
    norms = {name: ours for ours, name in OLD_NORMS.items()}
    if stem in norms:
        return f"{norms[stem]}.{end}"
    room = {"attention": "att", "feed_forward": "ffn"}.get(stem, stem)
    if end.startswith("time_mix_"):
        letters = {word: letter for letter, word in {**MIXES, "g": "gate"}.items()}
        mix = end.removeprefix("time_mix_")
        end = f"time_mix_{letters.get(mix, mix)}"
    return f"{room}.{end}"


def _fla_part(part: str) -> tuple[str, str]:
    stem, _, end = part.partition(".")
    norms = {name: ours for ours, name in NORMS.items()}
    if stem in norms:
        return f"{norms[stem]}.{end}", ""
    if stem == "ffn":
        return part, "row" if end == "x_k" else ""
    if stem != "attn":
        return part, ""
    digits = {name: digit for digit, name in LORA.items()}
    if end[1:6] == "_lora" and end[7:] in digits:
        digit = digits[end[7:]]
        return f"att.{end[0]}{digit}", "row" if digit == "0" else "transposed"
    inner, _, last = end.partition(".")
    projections = {name: ours for ours, name in PROJECTIONS.items()}
    if inner in projections:
        return f"att.{projections[inner]}.{last}", ""
    return f"att.{end}", "row" if end.startswith("x_") or end in ("k_k", "k_a") else ""
