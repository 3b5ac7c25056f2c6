"""Checkpoints that look like a version and are not.

A variant has all tensors of a version and more, so whoever leaves out what he does not know makes another model of it,
and so does a reference that leaves out the same. Names of files lie; tensors and config.json tell. Two hybrids are
known as what they are.
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
)


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A transformer with the time mix of a version, which a few formats hold: see versions.

    name    among SPECS, which is llama.cpp's
    label   its makers' name
    called  what a config.json calls it
    marks   as a Variant's
    """

    name: str
    label: str
    called: tuple[str, ...]
    marks: tuple[str, ...]


KNOWN_HYBRIDS: Final[tuple[Hybrid, ...]] = (
    Hybrid(
        "rwkv6qwen2",
        "QRWKV-6",
        ("RWKV6Qwen2ForCausalLM", "rwkv6qwen2"),
        (_ATT + r"(?:time_decay|time_maa_.*)", _LAYER + r"mlp\.(?:gate|up|down)_proj\..*"),
    ),
    Hybrid(
        "arwkv7",
        "ARWKV-7",
        ("RwkvHybridForCausalLM", "rwkv_hybrid"),
        (_ATT + r"(?:time_mixer\.)?(?:r_k|x_[rwkvag]|w0)", _LAYER + r"mlp\.(?:gate|up|down)_proj\..*"),
    ),
)
#: What a config.json calls what nothing here computes.
CALLED: Final[Mapping[str, str]] = {
    "RWKV7Qwen2ForCausalLM": "QRWKV-7",
    "rwkv7qwen2": "QRWKV-7",
}
_OPENMOSE: Final = re.compile(r"(?:.*[-_])?[hc]xa[-_]?07.*", re.IGNORECASE)


def variant_of(names: Iterable[str]) -> Variant | None:
    """The variant that a checkpoint with tensors of these names is; None for none that is known."""
    every = list(names)
    for variant in VARIANTS:
        if all(any(re.fullmatch(mark, name, re.DOTALL) for name in every) for mark in variant.marks):
            return variant
    return None


def hybrid_of(names: Iterable[str]) -> Hybrid | None:
    """The hybrid whose Hugging Face folder has tensors of these names; None for none."""
    every = list(names)
    for hybrid in KNOWN_HYBRIDS:
        if all(any(re.fullmatch(mark, name, re.DOTALL) for name in every) for mark in hybrid.marks):
            return hybrid
    return None


def hybrid_called(config: Mapping[str, Any]) -> Hybrid | None:
    """The hybrid that a config.json names; None where it names none."""
    said = _names(config)
    return next((hybrid for hybrid in KNOWN_HYBRIDS if any(name in said for name in hybrid.called)), None)


def label_of(version: str) -> str:
    """What a version is called in a sentence: RWKV-7, ARWKV-7."""
    return next((hybrid.label for hybrid in KNOWN_HYBRIDS if hybrid.name == version), f"RWKV-{version}")


def version_named(version: str) -> str:
    """A version in a message, with the name that it has here: version 7, ARWKV-7 (arwkv7)."""
    hybrid = any(hybrid.name == version for hybrid in KNOWN_HYBRIDS)
    return f"{label_of(version)} ({version})" if hybrid else f"version {version}"


def refuse_variant(names: Iterable[str]) -> None:
    """Raises UnknownModelError for a checkpoint that is a variant, with its name."""
    if found := variant_of(names):
        raise _refusal(found.name, f"it adds {found.adds}, which nothing here computes")


def refuse_called(config: Mapping[str, Any]) -> None:
    """Raises UnknownModelError where a config.json, or a GGUF's general.architecture, names a variant."""
    for name in _names(config):
        if known := CALLED.get(name):
            raise _refusal(known, f"it is called {name}")
        if _OPENMOSE.fullmatch(name):
            raise _refusal("hxa07x or cxa07x (OpenMOSE's hybrids)", f"it is called {name[:60]}")


def _names(config: Mapping[str, Any]) -> list[str]:
    """All that a config.json, or a GGUF, calls its model."""
    architectures = config.get("architectures")
    said = [*architectures] if isinstance(architectures, list) else []
    said += [config.get("model_type"), config.get("general.architecture")]
    return [name for name in said if isinstance(name, str)]


def _refusal(name: str, why: str) -> UnknownModelError:
    shown = name if name[:1].isalpha() else f"RWKV-{name}"
    return UnknownModelError(
        f"this is {shown}, which looks like a version that is known and is not: {why}. "
        "Take a model of version 4 to 7 itself, or the software that its makers name"
    )
