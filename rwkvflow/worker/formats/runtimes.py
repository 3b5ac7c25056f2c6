"""Which program runs which version of RWKV: the one table that cards, documents and tests go by.

A format says which versions its files can hold; a runtime may read a file of another version and compute something
else, so a card names none that this table does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.model.versions import HYBRIDS
from rwkvflow.worker.model.weight_types import BLOCKS, BY_NUMBER, LARGEST_F16, NARROWER
from rwkvflow.worker.model.weight_types import BY_NAME as BY_NAME_OF_TYPE

MEASURED, SOURCE = "measured", "by its source"
_ALL: Final = ("4", "5.0", "5.1", "5.2", "6", "7")


@dataclass(frozen=True)
class Runtime:
    """A program that runs files.

    families  of formats whose files it reads
    runs      how it is known that it computes what the reference does, by version: MEASURED, with the program itself
              and against the reference, or SOURCE
    instead   what it does with a version that it does not run, where it says nothing itself
    remarks   what is to be said of a version that it runs
    """

    name: str
    families: frozenset[str]
    runs: Mapping[str, str]
    instead: Mapping[str, str]
    remarks: Mapping[str, str] = field(default_factory=dict)


def _runtime(
    name: str, *families: str, measured: tuple[str, ...] = (), source: tuple[str, ...] = (), **instead: str
) -> Runtime:
    runs = dict.fromkeys(measured, MEASURED) | dict.fromkeys(source, SOURCE)
    others = {key.removeprefix("v").replace("_", "."): what for key, what in instead.items()}
    return Runtime(name, frozenset(families), runs, others)


_EPSILON: Final = (
    "Its head group norm has an epsilon of 1e-5, and the author's code one of 64e-5: logits move by hundredths of "
    "their standard deviation."
)
RUNTIMES: Final = (
    _runtime("librwkv", "ggml", "gguf", measured=_ALL),
    replace(
        _runtime(
            "rwkv.cpp",
            "ggml",
            measured=("4", "5.0", "5.2", "6", "7"),
            v5_1="takes it for 5.2 and reads past its decay: another model",
        ),
        remarks={"5.0": _EPSILON, "5.2": _EPSILON},
    ),
    _runtime("llama.cpp", "gguf", "transformers", measured=("6", "7", *HYBRIDS)),
    _runtime(
        "web-rwkv",
        "web",
        measured=("4", "5.1", "5.2", "6"),
        source=("7",),
        v5_0="takes a file without a gate for version 4",
    ),
    _runtime(
        "Ai00",
        "web",
        "prefab",
        source=("4", "5.1", "5.2", "6", "7"),
        v5_0="takes a file without a gate for version 4",
    ),
    _runtime("web-rwkv-py", "web", measured=("4", "5.1", "5.2", "6")),
    _runtime("the rwkv package", "chatrwkv", "safetensors", measured=_ALL),
    _runtime("RwkvForCausalLM of transformers", "transformers", measured=("4",)),
    _runtime("flash-linear-attention", "transformers", measured=("7",)),
    _runtime("faster-rwkv", "faster", source=("4", "5.0", "5.1", "5.2")),
    _runtime("mlx-lm", "mlx", "transformers", measured=("7",)),
    _runtime("onnxruntime", "onnx", measured=_ALL),
    _runtime("ncnn", "ncnn", measured=_ALL),
)
BY_NAME: Final[Mapping[str, Runtime]] = {runtime.name: runtime for runtime in RUNTIMES}


def runs(name: str, version: str) -> bool:
    """Whether a card of this version may name the runtime; True for "", a version that is not known."""
    return not version or version in BY_NAME[name].runs


def proof_of(item: Format, version: str) -> str | None:
    """What the smoke stage shows of a format and version: who computes, or "tensors" where nobody here can run it.

    None where the format refuses the version.
    """
    if version not in item.versions:
        return None
    if item.runs_here is not None and version not in item.runs_here:
        return TENSORS
    return item.computed_by.get(version, item.consumer)


TENSORS: Final = "tensors"
#: In what ggml multiplies with weights of a type, where that is kept in fp16: values themselves, one in 127 of the
#: largest of a block, or that and the sum of a block. K types keep a scale in fp32.
_WHOLE, _SCALE, _SUM = "whole", "scale", "sum"
IN_GGML: Final[Mapping[str, str]] = {
    "f16": _WHOLE,
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl"), _SCALE),
    **dict.fromkeys(("q4_1", "q5_1"), _SUM),
}
_TAKES_SQUARES: Final = "blk.{}.channel_mix_value.weight"  # by its name in a GGUF, of a layer
_LAYERS: Final = 128  # more than any model has: a mix may give each its type
GGML: Final = frozenset({"rwkv.cpp", "llama.cpp"})


def infinite_in(item: Format, n_ffn: int, square: float, block: float) -> dict[str, str]:
    """Which runtimes of a format take the model's activations for infinite, by name, and why.

    `square` and `block`: the largest k² of the feed-forward that the reference came to, and the largest sum of 32;
    `n_ffn` of them are multiplied at a time. It is what ggml makes of them before that; librwkv keeps them in fp32.
    """
    if item.family not in ("ggml", "gguf"):
        return {}
    amounts = {_WHOLE: square, _SCALE: square / 127, _SUM: max(block, square / 127)}
    kept = {IN_GGML[kind] for kind in _kinds_of_rows(item, n_ffn) if kind in IN_GGML}
    how = max(sorted(kept), key=amounts.__getitem__, default=_WHOLE)
    reached = amounts[how]
    if not kept or reached < LARGEST_F16:
        return {}
    what = {_WHOLE: "k²", _SCALE: "a scale of k²", _SUM: "the sum of 32 k²"}[how] + " of the feed-forward"
    why = f"{what} reaches {reached:.3g}, which is infinite in the fp16 that it multiplies in"
    return {one.name: why for one in RUNTIMES if one.name in GGML and item.family in one.families}


def _kinds_of_rows(item: Format, cols: int) -> set[str]:
    """In which types a format holds the matrices that take k², whose rows have so many columns; see its layout.

    Of a format from elsewhere that calls itself one of a family nothing is known.
    """
    name = (item.quantization or item.name.partition("-")[2]).removesuffix("-mixed").removesuffix("-from-f32")
    name = name.removesuffix("_m").removesuffix("_s") if "_k_" in name else name
    if name not in BY_NAME_OF_TYPE:
        return set()
    usual = BY_NAME_OF_TYPE[name].number
    given = [item.mix.kind_of(_TAKES_SQUARES.format(layer)) if item.mix else None for layer in range(_LAYERS)]
    return {_fitting(usual if kind is None else kind, cols) for kind in given}


def _fitting(wanted: int, cols: int) -> str:
    for kind in (wanted, NARROWER.get(wanted, wanted)):
        if not cols % BLOCKS[kind][0]:
            return BY_NUMBER[kind].name
    return "f16"
