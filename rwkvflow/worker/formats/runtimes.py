"""Which program runs which version of RWKV: the one table that cards, documents and tests go by.

A format says which versions its files can hold; a runtime may read a file of another version and compute something
else, so a card names none that this table does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rwkvflow.worker.formats.base import Format

MEASURED, SOURCE = "measured", "by its source"
_ALL: Final = ("4", "5.0", "5.1", "5.2", "6", "7")


@dataclass(frozen=True)
class Runtime:
    """A program that runs files.

    families  of formats whose files it reads
    runs      how it is known that it computes what the reference does, by version: MEASURED, with the program itself
              and against the reference, or SOURCE
    instead   what it does with a version that it does not run, where it says nothing itself
    """

    name: str
    families: frozenset[str]
    runs: Mapping[str, str]
    instead: Mapping[str, str]


def _runtime(
    name: str, *families: str, measured: tuple[str, ...] = (), source: tuple[str, ...] = (), **instead: str
) -> Runtime:
    runs = dict.fromkeys(measured, MEASURED) | dict.fromkeys(source, SOURCE)
    others = {key.removeprefix("v").replace("_", "."): what for key, what in instead.items()}
    return Runtime(name, frozenset(families), runs, others)


RUNTIMES: Final = (
    _runtime("librwkv", "ggml", "gguf", measured=_ALL),
    _runtime(
        "rwkv.cpp",
        "ggml",
        source=("4", "5.0", "5.2", "6", "7"),
        v5_1="takes it for 5.2 and reads past its decay: another model",
    ),
    _runtime("llama.cpp", "gguf", "transformers", measured=("6", "7")),
    _runtime(
        "web-rwkv",
        "web",
        measured=("4", "5.1", "5.2", "6"),
        source=("7",),
        v5_0="takes a file without a gate for version 4",
    ),
    _runtime("web-rwkv-py", "web", measured=("4", "5.1", "5.2", "6")),
    _runtime("the rwkv package", "chatrwkv", "safetensors", measured=_ALL),
    _runtime("RwkvForCausalLM of transformers", "transformers", measured=("4",)),
    _runtime("flash-linear-attention", "transformers", source=("7",)),
    _runtime("faster-rwkv", "faster", source=("4", "5.0", "5.1", "5.2")),
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
