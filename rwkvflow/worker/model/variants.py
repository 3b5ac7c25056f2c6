"""Checkpoints that look like a version and are not.

A variant has all tensors of a version and more, so whoever leaves out what he does not know makes another model of it,
and so does a reference that leaves out the same. Names of files lie; tensors and config.json tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rwkvflow.worker.errors import UnknownModelError


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that is not the version it looks like.

    marks  patterns of names; a checkpoint that has a tensor for each of them is this variant
    adds   what it computes besides
    """

    name: str
    marks: tuple[str, ...]
    adds: str


_LAYER: Final = r"(?:model\.)?(?:layers|blocks)\.[0-9]+\."
_ATT: Final = _LAYER + r"(?:self_attn|attn|att)\."
#: In the order in which they are asked for: 7b has the marks of 7a, and the hybrid those of 8.
VARIANTS: Final[tuple[Variant, ...]] = (
    Variant("4a or 4b", (r"blocks\.[0-9]+\.tiny_.*|head_[qk](?:\..*)?|copy_mask|pos_emb_.*",), "a small attention"),
    Variant("8 rc00-hybrid", (r"blocks\.[0-9]+\.qkv\.kkup.*",), "attention"),
    Variant("7b", (r"blocks\.[0-9]+\.qkv\..*",), "DeepEmbed, and attention with a cache that grows"),
    Variant("8 rc00", (r"blocks\.[0-9]+\.ffn\.enn\..*",), "a factor for each token in the channel mix"),
    Variant("7a", (r"blocks\.[0-9]+\.ffn\.(?:s_emb(?:_x)?\.weight|s[012])",), "DeepEmbed"),
    Variant(
        "hxa07x or cxa07x (OpenMOSE's hybrids)",
        (_ATT + r"(?:r_k|w0|w1|k0|a0)", _ATT + r"q_proj\.weight", _LAYER + r"mlp\..*"),
        "attention in some layers, RMS norms and gated feed-forward",
    ),
    Variant(
        "QRWKV-6 (llama.cpp's rwkv6qwen2)",
        (_ATT + r"(?:time_decay|time_maa_.*)", _LAYER + r"mlp\.(?:gate|up|down)_proj\..*"),
        "RMS norms and gated feed-forward",
    ),
    Variant(
        "ARWKV-7 (llama.cpp's arwkv7)",
        (_ATT + r"(?:time_mixer\.)?(?:r_k|x_[rwkvag]|w0)", _LAYER + r"mlp\.(?:gate|up|down)_proj\..*"),
        "RMS norms and gated feed-forward",
    ),
)
#: What a config.json or a GGUF calls them.
CALLED: Final[Mapping[str, str]] = {
    "RwkvHybridForCausalLM": "ARWKV-7 (llama.cpp's arwkv7)",
    "RWKV6Qwen2ForCausalLM": "QRWKV-6 (llama.cpp's rwkv6qwen2)",
    "rwkv_hybrid": "ARWKV-7 (llama.cpp's arwkv7)",
    "rwkv6qwen2": "QRWKV-6 (llama.cpp's rwkv6qwen2)",
    "arwkv7": "ARWKV-7 (llama.cpp's arwkv7)",
}
_OPENMOSE: Final = re.compile(r"(?:.*[-_])?[hc]xa[-_]?07.*", re.IGNORECASE)


def variant_of(names: Iterable[str]) -> Variant | None:
    """The variant that a checkpoint with tensors of these names is; None for none that is known."""
    every = list(names)
    for variant in VARIANTS:
        if all(any(re.fullmatch(mark, name, re.DOTALL) for name in every) for mark in variant.marks):
            return variant
    return None


def refuse_variant(names: Iterable[str]) -> None:
    """Raises UnknownModelError for a checkpoint that is a variant, with its name."""
    if found := variant_of(names):
        raise _refusal(found.name, f"it adds {found.adds}, which nothing here computes")


def refuse_called(config: Mapping[str, Any]) -> None:
    """Raises UnknownModelError where a config.json, or a GGUF's general.architecture, names a variant."""
    architectures = config.get("architectures")
    said = [*architectures] if isinstance(architectures, list) else []
    said += [config.get("model_type"), config.get("general.architecture")]
    for name in said:
        if isinstance(name, str) and (known := CALLED.get(name)):
            raise _refusal(known, f"it is called {name}")
        if isinstance(name, str) and _OPENMOSE.fullmatch(name):
            raise _refusal("hxa07x or cxa07x (OpenMOSE's hybrids)", f"it is called {name[:60]}")


def _refusal(name: str, why: str) -> UnknownModelError:
    shown = name if name[:1].isalpha() else f"RWKV-{name}"
    return UnknownModelError(
        f"this is {shown}, which looks like a version that is known and is not: {why}. "
        "Take a model of version 4 to 7 itself, or the software that its makers name"
    )
