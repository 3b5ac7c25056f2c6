"""The names that Hugging Face models give an RWKV model's tensors, both ways.

transformers' RwkvForCausalLM (4), the Rwkv5ForCausalLM and Rwkv6ForCausalLM of the author's Hugging Face models, and
flash-linear-attention's RWKV7ForCausalLM. Which tensors there are is in the versions' tables; here is what they are
called, and the reader's names are the writer's, turned round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rwkvflow.worker.model.versions import SPECS, TensorSpec

_THEIRS = re.compile(r"(rwkv\.blocks|model\.layers)\.([0-9]{1,9})\.(.+)")
_OLD, _FLA = "rwkv.blocks", "model.layers"

OLD_GLOBAL = {"emb": "rwkv.embeddings", "ln_out": "rwkv.ln_out", "head": "head"}
FLA_GLOBAL = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
OLD_NORMS = {"ln0": "pre_ln", "ln1": "ln1", "ln2": "ln2"}
FLA_NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
ROOMS = {"att": "attention", "ffn": "feed_forward"}
MIXES = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
#: What older versions of flash-linear-attention have: six mixes of the attention's inputs in one, [6, n], [6, 1, 1, n].
FUSED = re.compile(r"(model\.layers\.[0-9]{1,9}\.attn\.)x_x")
FUSED_PARTS = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")
LORA = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}
#: Of the versions that have been written in each style: where their layers are, and what else they have.
STYLES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    **dict.fromkeys(("4", "5.0", "5.1", "5.2", "6"), (_OLD, OLD_GLOBAL)),
    "7": (_FLA, FLA_GLOBAL),
}


def _old(part: str) -> str:
    """A layer's tensor in the older style."""
    stem, _, end = part.partition(".")
    if stem in OLD_NORMS:
        return f"{OLD_NORMS[stem]}.{end}"
    mix = end.removeprefix("time_mix_")
    return f"{ROOMS.get(stem, stem)}.{f'time_mix_{MIXES[mix]}' if mix != end and mix in MIXES else end}"


def _fla(part: str) -> str:
    """A layer's tensor as flash-linear-attention has it."""
    stem, _, end = part.partition(".")
    if stem in FLA_NORMS:
        return f"{FLA_NORMS[stem]}.{end}"
    if stem != "att":
        return part
    if len(end) == 2 and end[0] in "wavg" and end[1] in LORA:
        return f"attn.{end[0]}_lora.{LORA[end[1]]}"
    inner, _, last = end.partition(".")
    return f"attn.{PROJECTIONS[inner]}.{last}" if inner in PROJECTIONS else f"attn.{end}"


def _parts(version: str) -> dict[str, str]:
    """The author's and their names of a layer's tensors, without those that only files of states have."""
    style = _old if STYLES[version][0] == _OLD else _fla
    return {
        name: style(name)
        for spec in SPECS[version].tensors
        if spec.role != "state"
        for name in (spec.name, spec.also)
        if name
    }


PARTS: Mapping[str, Mapping[str, str]] = {version: _parts(version) for version in STYLES}
_INVERSE: dict[str, dict[str, str]] = {_OLD: {}, _FLA: {}}
for _version, _parts_of_it in PARTS.items():
    _INVERSE[STYLES[_version][0]].update({theirs: ours for ours, theirs in _parts_of_it.items()})
_OF_FLA: Mapping[str, TensorSpec] = {spec.name: spec for spec in SPECS["7"].tensors}


def name_of(version: str, name: str) -> str | None:
    """What the author's tensor is called; None where there is no place for it."""
    place, whole = STYLES[version]
    stem, _, end = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{end}"
    parts = name.split(".", 2)
    theirs = PARTS[version].get(parts[2]) if parts[0] == "blocks" and len(parts) == 3 else None
    if theirs is None or (place == _FLA and parts[1] == "0" and parts[2].startswith("att.v") and len(parts[2]) == 6):
        return None  # layer 0 mixes in no values of a layer before it: fla has no such parameters there
    return f"{place}.{parts[1]}.{theirs}"


def is_theirs(name: str) -> bool:
    """Whether a layer's tensor of this name is a Hugging Face model's."""
    return _THEIRS.fullmatch(name) is not None


def own_name(theirs: str) -> tuple[str, str]:
    """The author's name of a tensor, and how it differs: "" (not), "transposed", or "row" for [n] that is [1, 1, n].

    A name that is none of Hugging Face's stays what it is.
    """
    stem, _, end = theirs.rpartition(".")
    for names in (OLD_GLOBAL, FLA_GLOBAL):
        for ours, name in names.items():
            if stem == name and (stem != "head" or end == "weight"):
                return f"{ours}.{end}", ""
    match = _THEIRS.fullmatch(theirs)
    if match is None:
        return theirs, ""
    place, layer, part = match[1], int(match[2]), match[3]
    known = _INVERSE[place].get(part)
    if known is None:  # a tensor that nobody knows: its room, so that it is told apart from those of other rooms
        rooms = {name: ours for ours, name in ROOMS.items()} if place == _OLD else {"attn": "att"}
        room, _, rest = part.partition(".")
        return f"blocks.{layer}.{rooms.get(room, room)}.{rest}", ""
    return f"blocks.{layer}.{known}", _change(_OF_FLA[known]) if place == _FLA else ""


def _change(spec: TensorSpec) -> str:
    if spec.low_rank and spec.role == "matrix":
        return "transposed"
    return "row" if spec.shape[:2] == (1, 1) else ""
