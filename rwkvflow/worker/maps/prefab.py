"""Where web-rwkv's own struct has an RWKV model's tensors: the fields of its `Model`, in the order of the source.

As cryscan/web-rwkv has them since 0.10.10 (src/runtime/v4.rs to v7.rs). It takes values from a `.st` file, which is
fp16, so everything here has been fp16 once; what is F32 was widened from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rwkvflow.worker.maps import changes
from rwkvflow.worker.maps.changes import ValueChange

RESCALE: Final[Mapping[str, int]] = {"4": 6, "5.1": 6, "5.2": 6, "6": 6, "7": 1024}  # its DEFAULT_RESCALE
SEPARATE: Final = 1024  # its DEFAULT_SEP
VARIANTS: Final[Mapping[str, str]] = {"4": "V4", "5.1": "V5", "5.2": "V5", "6": "V6", "7": "V7"}
PADDED: Final = 8  # rows of the embedding, and of the head of 6 and 7, are a multiple of it: zeros follow

Kind = Literal["vector", "wide", "heads", "table", "stack", "matrix", "swapped", "padded", "layer"]


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of the struct.

    path     of its field; in a layer behind `layers[N]`
    sources  the checkpoint's names, in a layer behind `blocks.N.`; several only where kind is stack
    kind     vector: fp16 [n]. wide: F32 [n]. heads: fp16, a row for each head. table: the embedding, fp16, with rows
             of zeros. stack: several vectors, one upon the other.
             And in the enum `Matrix`, which says how it is stored: matrix: fp16. swapped: the last two dims are
             swapped. padded: with rows of zeros. layer: one of a layer's large ones, which may be quantized
    change   of a wide tensor's values
    halved   whether it is halved after each so many layers, as RESCALE says
    """

    path: tuple[str, ...]
    sources: tuple[str, ...]
    kind: Kind
    change: ValueChange | None = None
    halved: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it is a value of the enum `Matrix`."""
        return self.kind in ("matrix", "swapped", "padded", "layer")


def _norm(path: tuple[str, ...], source: str, kind: Kind = "vector") -> tuple[Place, ...]:
    return tuple(Place((*path, field), (f"{source}.{part}",), kind) for field, part in (("w", "weight"), ("b", "bias")))


def _vectors(room: str, *names: str, ours: str = "") -> tuple[Place, ...]:
    return tuple(Place((room, name), (f"{room}.{ours + name[-1] if ours else name}",), "vector") for name in names)


def _large(room: str, **fields: str) -> tuple[Place, ...]:
    return tuple(
        Place((room, field), (f"{room}.{name}.weight",), "layer", halved=(room, name) in _HALVED)
        for field, name in fields.items()
    )


_HALVED = {("att", "output"), ("ffn", "value")}
_ATT = {"w_k": "key", "w_v": "value", "w_r": "receptance"}
_FFN = {"w_k": "key", "w_v": "value"}


def _before_7(att: tuple[Place, ...], mixes: str, *, gate: bool) -> tuple[Place, ...]:
    """A layer of versions 4 to 6: `att` is what stands before the matrices of the time mix."""
    gated = {"w_g": "gate"} if gate else {}
    return (
        *_norm(("att_layer_norm",), "ln1"),
        *_norm(("ffn_layer_norm",), "ln2"),
        *att,
        *_large("att", **_ATT, **gated, w_o="output"),
        *(_norm(("att", "group_norm"), "att.ln_x", "heads") if gate else ()),
        *_vectors("ffn", "time_mix_k", "time_mix_r", ours=mixes),
        *_large("ffn", **_FFN, w_r="receptance"),
    )


def _time_mix(decay: ValueChange, first: str, letters: str) -> tuple[Place, ...]:
    return (
        Place(("att", "time_decay"), ("att.time_decay",), "wide", decay),
        Place(("att", "time_first"), (first,), "wide"),
        *_vectors("att", *(f"time_mix_{x}" for x in letters)),
    )


_5 = _before_7(_time_mix(changes.EXP_NEGATIVE_EXP, "att.time_faaaa", "kvrg"), "time_mix_", gate=True)
#: The fields of a layer.
LAYERS: Final[Mapping[str, tuple[Place, ...]]] = {
    "4": _before_7(_time_mix(changes.NEGATIVE_EXP, "att.time_first", "kvr"), "time_mix_", gate=False),
    "5.1": _5,
    "5.2": _5,
    "6": _before_7(
        (
            *_vectors("att", "time_decay"),
            Place(("att", "time_first"), ("att.time_faaaa",), "wide"),
            *_vectors("att", "time_mix_x", ours="time_maa_"),
            Place(("att", "time_mix"), tuple(f"att.time_maa_{x}" for x in "wkvrg"), "stack"),
            *(Place(("att", f"time_decay_w{n}"), (f"att.time_decay_w{n}",), "swapped") for n in "12"),
            *(Place(("att", f"time_mix_w{n}"), (f"att.time_maa_w{n}",), "swapped") for n in "12"),
        ),
        "time_maa_",
        gate=True,
    ),
    "7": (
        *_norm(("att_ln",), "ln1"),
        *_norm(("ffn_ln",), "ln2"),
        *_vectors("att", *(f"x_{x}" for x in "rwkvag"), "w0", "a0", "v0"),
        *(Place(("att", f"{x}{n}"), (f"att.{x}{n}",), "swapped") for x in "wagv" for n in "12"),
        Place(("att", "r_k"), ("att.r_k",), "heads"),
        *_vectors("att", "k_k", "k_a"),
        *_large("att", **_ATT, w_o="output"),
        *_norm(("att", "gn"), "att.ln_x", "heads"),
        *_vectors("ffn", "x_k"),
        *_large("ffn", **_FFN),
    ),
}


def _model(norm: str, head: Kind) -> tuple[Place, ...]:
    """What stands before the layers."""
    return (
        *_norm(("embed", norm), "blocks.0.ln0"),
        Place(("embed", "w"), ("emb.weight",), "table"),
        *_norm(("head", norm), "ln_out"),
        Place(("head", "w"), ("head.weight",), head),
    )


#: The fields beside the layers.
GLOBAL: Final[Mapping[str, tuple[Place, ...]]] = {
    **dict.fromkeys(("4", "5.1", "5.2"), _model("layer_norm", "matrix")),
    "6": _model("layer_norm", "padded"),
    "7": _model("ln", "padded"),
}


def sources(version: str, place: Place, layer: int) -> tuple[str, ...]:
    """The checkpoint's names of a layer's tensor. Layer 0 of version 7 mixes no values in: those of `a` stand there."""
    names = tuple(f"blocks.{layer}.{name}" for name in place.sources)
    if version == "7" and layer == 0 and place.path in (("att", "v0"), ("att", "v1"), ("att", "v2")):
        return tuple(name.replace(".att.v", ".att.a") for name in names)
    return names


def halvings(version: str, place: Place, layer: int) -> int:
    """How often a layer's tensor is halved."""
    return layer // RESCALE[version] if place.halved else 0
