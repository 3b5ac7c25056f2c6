"""The versions of RWKV: what tensors each has, of what shape, and what tells one from another.

Names and shapes are those of the author's training code (BlinkDL/RWKV-LM), in the order of its state_dict. From these
tables come detection and the checks of a checkpoint (architecture.py), what is not known of one (`unknown`), and the
random checkpoints of the tests. A new version is a row of VERSION_SPECS, beside what computes it.

A shape is made of sizes and of these letters, or of products such as 5*R:

    V  rows of the embedding       C  its width           A  width of the time mix (C in all that was published)
    F  width of the channel mix    H  heads               N  size of a head (A = H * N)
    K  width of keys and values that several heads share (a multiple of N)
    R  rank of a low-rank pair, which may differ from pair to pair

Beside the versions stand two hybrids: a transformer whose attention was replaced by the time mix of one of them, with
its RMS norms and its gated feed-forward. VERSIONS does not name them, and few formats hold them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

LAYER_NORM_EPS: Final = 1e-5  # of all layer norms, in the author's code
HEAD_NORM_EPS: Final = 64e-5  # of ln_x, in the author's code for versions 5 to 7
#: Layers of versions 4 to 6 after which values are halved where they have to stay in the range of F16.
RESCALE_EVERY: Final = 6
RESCALED: Final = ("att.output.weight", "ffn.value.weight")  # and these are the matrices that it concerns
#: The number of rows of emb.weight tells the tokenizer.
TOKENIZERS: Final = {256: "bytes", 50277: "20b", 50304: "20b", 65536: "world"}  # 50304: padded, of the Pile

Role = Literal["matrix", "vector", "norm", "state"]
Dim = int | str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor, or the same one of every layer.

    name        whole, or behind `blocks.N.`
    shape       as the author writes it, see above
    role        matrix: the shape is exactly this. vector, norm: dimensions of size 1 do not count. state: an initial
                state, exactly this or none of the model's
    low_rank    the name of the low-rank pair that it belongs to
    also        another name that files have for it
    from_layer  before this layer a checkpoint may lack it, with all of its low-rank pair
    only_layer  the one layer that has it; None: all
    optional    a checkpoint may lack it
    along       of what is optional: layer 0 tells whether all layers have those of this name, or none
    """

    name: str
    shape: tuple[Dim, ...]
    role: Role = "vector"
    low_rank: str | None = None
    also: str | None = None
    from_layer: int = 0
    only_layer: int | None = None
    optional: bool = False
    along: str = ""

    @property
    def tells_rank(self) -> bool:
        """Whether a dimension of it is the rank of its pair."""
        return "R" in self.shape

    @property
    def is_per_head(self) -> bool:
        """Whether it has a value, or a row of them, for each head."""
        return self.shape[:1] == ("H",)

    def sizes(self, of: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers; `of` gives the size for each letter."""
        return tuple(_size(dim, of) for dim in self.shape)


def _size(dim: Dim, of: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return math.prod(int(part) if part.isdigit() else of[part] for part in dim.split("*"))


#: The tensors that every version has beside its layers', in the order of the file: before the layers, after them.
BEFORE: Final = (TensorSpec("emb.weight", ("V", "C"), "matrix"),)
AFTER: Final = (
    TensorSpec("ln_out.weight", ("C",), "norm"),
    TensorSpec("ln_out.bias", ("C",), "norm"),
    TensorSpec("head.weight", ("V", "C"), "matrix"),
)


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """One version.

    tensors   of a layer, in the author's order
    has       names of a layer's tensors that tell the version where `lacks` are absent
    wide      a tensor whose second dimension has to be more than 1; "" for none
    after     the tensors that follow the layers
    rows      the matrices of a layer whose rows are the sizes of letters
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    wide: str = ""
    after: tuple[TensorSpec, ...] = AFTER
    rows: tuple[tuple[str, str], ...] = (("A", "att.key.weight"), ("F", "ffn.key.weight"))

    @property
    def has_heads(self) -> bool:
        """Whether the state is one matrix a head."""
        return any(spec.is_per_head for spec in self.tensors)

    def of_layer(self, layer: int) -> tuple[TensorSpec, ...]:
        """The tensors that a layer may have."""
        return tuple(spec for spec in self.tensors if spec.only_layer in (None, layer))

    @property
    def heads_from(self) -> TensorSpec | None:
        """The tensor whose first dimension tells the number of heads; None without heads."""
        return next((spec for spec in self.tensors if spec.is_per_head and not spec.optional), None)


def _norm(name: str, size: str = "C", only_layer: int | None = None) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{name}.{part}", (size,), "norm", only_layer=only_layer) for part in ("weight", "bias"))


def _rows(*names: str, size: str = "C") -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, (1, 1, size)) for name in names)


def _matrix(name: str, rows: str, columns: str) -> TensorSpec:
    return TensorSpec(f"{name}.weight", (rows, columns), "matrix")


def _pair(key: str, first: str, second: str, *, row: str = "", from_layer: int = 0) -> tuple[TensorSpec, ...]:
    """A low-rank pair C -> R -> A, with the row that is added to what comes of it."""
    made = (
        *_rows(*([row] if row else []), size="A"),
        TensorSpec(first, ("C", "R"), "matrix"),
        TensorSpec(second, ("R", "A"), "matrix"),
    )
    return tuple(replace(spec, low_rank=key, from_layer=from_layer) for spec in made)


_NORMS = (*_norm("ln0", only_layer=0), *_norm("ln1"), *_norm("ln2"))
_PROJECTIONS = (
    *(_matrix(f"att.{x}", "A", "C") for x in ("receptance", "key", "value")),
    _matrix("att.output", "C", "A"),
)
_GATE = _matrix("att.gate", "A", "C")
_HEAD_NORM = _norm("att.ln_x", "A")
_STATE = TensorSpec("att.time_state", ("H", "N", "N"), "state", optional=True)
_FFN = (_matrix("ffn.key", "F", "C"), _matrix("ffn.value", "C", "F"))
_FFN_GATED = (*_FFN, _matrix("ffn.receptance", "C", "C"))


def _before_6(shape: tuple[Dim, ...], first: str, also: str | None, mixes: str) -> tuple[TensorSpec, ...]:
    """The time mix's vectors of versions 4 and 5: decay and bonus are of `shape`."""
    return (
        TensorSpec("att.time_decay", shape),
        TensorSpec(f"att.{first}", shape, also=also and f"att.{also}"),
        *_rows(*(f"att.time_mix_{x}" for x in mixes)),
    )


_FFN_4 = (*_rows("ffn.time_mix_k", "ffn.time_mix_r"), *_FFN_GATED)
_4 = (*_NORMS, *_before_6(("A",), "time_first", None, "kvr"), *_PROJECTIONS, *_FFN_4)
_5_0 = (
    *_NORMS,
    *_before_6(("H",), "time_first", "time_faaaa", "kvr"),
    *_PROJECTIONS,
    *_HEAD_NORM,
    *_FFN_4,
    _STATE,
)
_5_1 = (
    *_NORMS,
    *_before_6(("H",), "time_faaaa", "time_first", "kvrg"),
    *_PROJECTIONS,
    _GATE,
    *_HEAD_NORM,
    *_FFN_4,
    _STATE,
)
_5_2 = (
    *_NORMS,
    *_before_6(("H", "N"), "time_faaaa", "time_first", "kvrg"),
    *_PROJECTIONS,
    _GATE,
    *_HEAD_NORM,
    *_FFN_4,
    _STATE,
)
_6 = (
    *_NORMS,
    *_rows(*(f"att.time_maa_{x}" for x in "xwkvrg")),
    TensorSpec("att.time_maa_w1", ("C", "5*R"), "matrix", "maa"),
    TensorSpec("att.time_maa_w2", (5, "R", "C"), "matrix", "maa"),
    *_rows("att.time_decay", size="A"),
    *_pair("decay", "att.time_decay_w1", "att.time_decay_w2"),
    TensorSpec("att.time_faaaa", ("H", "N")),
    *_PROJECTIONS,
    _GATE,
    *_HEAD_NORM,
    *_rows("ffn.time_maa_k", "ffn.time_maa_r"),
    *_FFN_GATED,
    _STATE,
)
_7 = (
    *_NORMS,
    *_rows(*(f"att.x_{x}" for x in "rwkvag")),
    *_pair("w", "att.w1", "att.w2", row="att.w0"),
    *_pair("a", "att.a1", "att.a2", row="att.a0"),
    *_pair("v", "att.v1", "att.v2", row="att.v0", from_layer=1),  # layer 0 makes the value that others mix in
    *_pair("g", "att.g1", "att.g2"),
    *_rows("att.k_k", "att.k_a", size="A"),
    TensorSpec("att.r_k", ("H", "N")),
    *_PROJECTIONS,
    *_HEAD_NORM,
    *_rows("ffn.x_k"),
    *_FFN,
    _STATE,
)


def _optional(group: str, *specs: TensorSpec) -> tuple[TensorSpec, ...]:
    """Tensors that are there in all layers, or in none."""
    return tuple(replace(spec, optional=True, along=group) for spec in specs)


_RMS_NORMS = (TensorSpec("ln1.weight", ("C",), "norm"), TensorSpec("ln2.weight", ("C",), "norm"))
_GATED_FFN = (_matrix("ffn.gate", "F", "C"), _matrix("ffn.up", "F", "C"), _matrix("ffn.down", "C", "F"))
_ARWKV7 = (
    *_RMS_NORMS,
    *_rows(*(f"att.x_{x}" for x in "rwkva")),
    *_optional("gate", *_rows("att.x_g")),
    *_pair("w", "att.w1", "att.w2", row="att.w0"),
    *_pair("a", "att.a1", "att.a2", row="att.a0"),
    *_pair("v", "att.v1", "att.v2", row="att.v0", from_layer=1),  # layer 0 may have some, which nothing uses
    *_optional("gate", *_pair("g", "att.g1", "att.g2")),
    *_rows("att.k_k", "att.k_a", size="A"),
    TensorSpec("att.r_k", ("H", "N")),
    *_PROJECTIONS,
    *_optional("head norm", *_HEAD_NORM),
    *_GATED_FFN,
)
#: The low-rank matrices of its token shift stand in the order r, k, v, w, g, and those of version 6 in w, k, v, r, g.
_RWKV6QWEN2 = (
    *_RMS_NORMS,
    *_rows(*(f"att.time_maa_{x}" for x in "xrkvwg")),
    TensorSpec("att.time_maa_w1", ("C", "5*R"), "matrix", "maa"),
    TensorSpec("att.time_maa_w2", (5, "R", "C"), "matrix", "maa"),
    TensorSpec("att.time_decay", ("H", "N")),  # its reader makes a row of it for each head: nothing else tells them
    *_pair("decay", "att.time_decay_w1", "att.time_decay_w2"),
    _matrix("att.receptance", "A", "C"),
    _matrix("att.key", "K", "C"),
    _matrix("att.value", "K", "C"),
    *(
        spec
        for name, size in (("receptance", "A"), ("key", "K"), ("value", "K"))
        for spec in _optional(f"bias of {name}", TensorSpec(f"att.{name}.bias", (size,)))
    ),
    _GATE,
    _matrix("att.output", "C", "A"),
    *_GATED_FFN,
)

#: The projects disagree on labels; here: 5.0 has a decay a head and no gate, 5.1 a gate as well, 5.2 a decay a channel.
VERSION_SPECS: Final[tuple[VersionSpec, ...]] = (
    VersionSpec("4", _4, ("att.time_decay",), lacks=("att.ln_x.weight", "att.time_maa_x")),
    VersionSpec("5.0", _5_0, ("att.time_decay", "att.ln_x.weight"), lacks=("att.gate.weight", "att.time_maa_x")),
    VersionSpec("5.1", _5_1, ("att.time_decay", "att.ln_x.weight", "att.gate.weight"), lacks=("att.time_maa_x",)),
    VersionSpec(
        "5.2",
        _5_2,
        ("att.time_decay", "att.ln_x.weight", "att.gate.weight"),
        lacks=("att.time_maa_x",),
        wide="att.time_decay",
    ),
    VersionSpec("6", _6, ("att.time_maa_x",)),
    VersionSpec("7", _7, ("att.r_k",)),
)
_RMS_AFTER: Final = tuple(spec for spec in AFTER if not spec.name.endswith(".bias"))
HYBRID_SPECS: Final[tuple[VersionSpec, ...]] = (
    VersionSpec(
        "rwkv6qwen2",
        _RWKV6QWEN2,
        ("att.time_maa_x", "ffn.gate.weight"),
        after=_RMS_AFTER,
        rows=(("A", "att.receptance.weight"), ("F", "ffn.up.weight"), ("K", "att.key.weight")),
    ),
    VersionSpec(
        "arwkv7",
        _ARWKV7,
        ("att.r_k", "ffn.gate.weight"),
        after=_RMS_AFTER,
        rows=(("A", "att.key.weight"), ("F", "ffn.up.weight")),
    ),
)
SPECS: Final[Mapping[str, VersionSpec]] = {spec.name: spec for spec in (*VERSION_SPECS, *HYBRID_SPECS)}
VERSIONS: Final = tuple(spec.name for spec in VERSION_SPECS)
HYBRIDS: Final = tuple(spec.name for spec in HYBRID_SPECS)
ALL_VERSIONS: Final = frozenset(VERSIONS)
STATEFUL: Final = frozenset(spec.name for spec in VERSION_SPECS if spec.has_heads)  # a state for each head


def tell_version(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str | None:
    """The version of a model with tensors of these names and shapes; None when it has none of the marks.

    The latest version is taken whose marks are there: what an older one lacks, it may have.
    """
    found: dict[str, tuple[int, ...]] = {}  # the first layer's that has it
    for name, shape in shapes:
        parts = name.split(".", 2)
        if parts[0] == "blocks" and len(parts) == 3:
            found.setdefault(parts[2], shape)
    for spec in reversed((*VERSION_SPECS, *HYBRID_SPECS)):
        if all(name in found for name in spec.has) and not any(name in found for name in spec.lacks):
            shape = found.get(spec.wide, ())
            if not spec.wide or (len(shape) > 1 and shape[1] > 1):
                return spec.name
    return None


def split_name(name: str) -> tuple[int | None, str]:
    """The layer of a tensor of this name and the rest of it; None and the whole name for one of no layer."""
    match = re.fullmatch(r"blocks\.([0-9]{1,9})\.(.+)", name, re.ASCII | re.DOTALL)
    return (int(match[1]), match[2]) if match else (None, name)


def all_specs(version: str, layers: int) -> Iterator[tuple[str, TensorSpec]]:
    """Whole names and specs of all tensors that a model of this version may have, in the author's order."""
    yield from ((spec.name, spec) for spec in BEFORE)
    for layer in range(layers):
        yield from ((f"blocks.{layer}.{spec.name}", spec) for spec in SPECS[version].of_layer(layer))
    yield from ((spec.name, spec) for spec in SPECS[version].after)


#: What trainers leave in a checkpoint, and no runtime looks at.
HARMLESS: Final = re.compile(r"(?:loss|ema|global_step|epoch|step)(?:\..*)?|(?:ema|optimizer|lr_scheduler)[._].*")
