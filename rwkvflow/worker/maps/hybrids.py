"""Hugging Face folders of the two hybrids: what their tensors are called, and what their config.json must say.

    arwkv7       RwkvHybridForCausalLM of RWKV-Red-Team's ARWKV models: self_attn.time_mixer.* are version 7's names
    rwkv6qwen2   RWKV6Qwen2ForCausalLM of recursal's and featherless-ai's QRWKV-6 models: self_attn.{q,k,v,o}_proj and
                 gate, and version 6's names for what the token shift and the decay are made of

All else is Qwen2's. What llama.cpp computes in one way only, and a config.json may ask for in another, is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import Architecture
from rwkvflow.worker.model.versions import HEAD_NORM_EPS, LAYER_NORM_EPS

GLOBAL: Final = {
    "model.embed_tokens.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "lm_head.weight": "head.weight",
}
_LAYER: Final = re.compile(r"model\.layers\.([0-9]{1,9})\.(.+)", re.DOTALL)
_SHARED: Final = {
    "input_layernorm.weight": "ln1.weight",
    "post_attention_layernorm.weight": "ln2.weight",
    **{f"mlp.{x}_proj.weight": f"ffn.{x}.weight" for x in ("gate", "up", "down")},
}
_PROJECTIONS: Final = {"q_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
#: Values that a key may have; where it is absent, it is one of these.
_MUST: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    "arwkv7": {"hidden_act": ("silu",), "wkv_version": (7,)},
    "rwkv6qwen2": {
        "hidden_act": ("silu",),
        "use_rope": (False,),
        "gate_rank_type": (1,),
        "balance_state": (True, 1),
        "groupnorm_att": (False, 0),
        "use_tokenshift": (True, 1),
    },
}


def own_name(version: str, theirs: str) -> str:
    """The name here of a tensor of a hybrid's folder; one that nobody knows keeps what it is called in its layer."""
    match = _LAYER.fullmatch(theirs)
    if match is None:
        return GLOBAL.get(theirs, theirs)
    layer, part = match.groups()
    return f"blocks.{layer}.{_part(version, part)}"


def _part(version: str, part: str) -> str:
    if part in _SHARED:
        return _SHARED[part]
    inner = part.removeprefix("self_attn.")
    if inner == part:
        return part.replace("mlp.", "ffn.", 1) if part.startswith("mlp.") else part
    if version == "arwkv7":
        return f"att.{inner.removeprefix('time_mixer.')}"
    stem, dot, end = inner.partition(".")
    return f"att.{_PROJECTIONS.get(stem, stem)}{dot}{end}"


def heads(config: Mapping[str, Any], width: int) -> tuple[int, int]:
    """Heads and their size, which no tensor of rwkv6qwen2 tells. Raises WorkerError."""
    count = config.get("num_attention_heads")
    if type(count) is not int or count < 1 or width % count:
        raise WorkerError(
            f"config.json: num_attention_heads is {json.dumps(count)[:60]}, which does not divide the width of {width}"
        )
    return count, width // count


def said(config: Mapping[str, Any]) -> dict[str, float]:
    """What config.json says and no tensor tells, for ModelTensors. Raises WorkerError where it does not."""
    eps = config.get("rms_norm_eps")
    if not isinstance(eps, int | float) or isinstance(eps, bool) or not 0 < eps < 1:
        raise WorkerError(f"config.json: rms_norm_eps is {json.dumps(eps)[:60]}, and no epsilon of the norms")
    return {"rms_norm_eps": float(eps)}


def wrong_keys(config: Mapping[str, Any], architecture: Architecture, names: Mapping[str, Any]) -> list[str]:
    """What config.json says otherwise than the tensors, or asks for and llama.cpp does not compute, by its keys."""
    version = architecture.version
    found = [
        f"{key} is {_shown(config[key])}, and the tensors say {value}"
        for key, value in _told(architecture, names).items()
        if config.get(key) is not None and config[key] != value
    ]
    found += [
        f"{key} is {_shown(config[key])}, and llama.cpp computes {json.dumps(values[0])} only"
        for key, values in _MUST[version].items()
        if config.get(key) is not None and config[key] not in values
    ]
    if config.get("quantization_config") is not None:
        found.append("quantization_config is there: weights that another package quantized")
    divisor = config.get("head_size_divisor")
    if "blocks.0.att.ln_x.weight" in names and divisor is not None:
        eps = LAYER_NORM_EPS * divisor * divisor if isinstance(divisor, int | float) else math.nan
        if not math.isclose(eps, HEAD_NORM_EPS, rel_tol=1e-6):
            found.append(
                f"head_size_divisor is {_shown(divisor)}, so that the head norm has another epsilon than "
                f"{HEAD_NORM_EPS:g}, llama.cpp's only one"
            )
    return found


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def _told(architecture: Architecture, names: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors say of keys that config.json may have."""
    found: dict[str, Any] = {
        "vocab_size": architecture.n_vocab,
        "hidden_size": architecture.n_embd,
        "num_hidden_layers": architecture.n_layer,
        "intermediate_size": architecture.n_ffn,
    }
    if architecture.version == "rwkv6qwen2":
        ranks = {"lora_rank_tokenshift": "maa", "lora_rank_decay": "decay"}
        return (
            found
            | {"num_key_value_heads": architecture.n_head_kv}
            | {key: architecture.lora.get(rank) for key, rank in ranks.items()}
        )
    optional = {"wkv_has_gate": "x_g", "wkv_has_group_norm": "ln_x.weight"}
    return (
        found
        | {"head_size": architecture.head_size}
        | {key: f"blocks.0.att.{name}" in names for key, name in optional.items()}
    )


#: The keys that are looked at, for the documents.
COMPARED: Final = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "head_size", "wkv_has_gate"),
    *("wkv_has_group_norm", "num_key_value_heads", "lora_rank_tokenshift", "lora_rank_decay"),
)
TAKEN: Final = ("rms_norm_eps", "num_attention_heads", "tie_word_embeddings")
REFUSED: Final = (
    *dict.fromkeys(key for keys in _MUST.values() for key in keys),
    *("quantization_config", "head_size_divisor"),
)
