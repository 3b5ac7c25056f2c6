"""What a model is made of: a checkpoint, and what is merged into it or goes along with it when it is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZERS = ("rwkv_vocab_v20230424.txt", "tokenizer.json")  # files of a Hugging Face model's folder
LORA, INIT, STATE = "lora", "lora_init", "state"  # names of the files beside the checkpoint


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    path     a checkpoint: a file, or the folder of a Hugging Face model
    lora     a LoRA to merge into it, and the alpha that it was trained with
    init     what PiSSA began with, where the LoRA is one of its
    state    a file of initial states (`blocks.N.att.time_state`) that goes along
    ignore   globs of names: tensors that are left out, though nobody here knows what they do
    """

    path: Path
    lora: Path | None = None
    alpha: float | None = None
    state: Path | None = None
    ignore: tuple[str, ...] = ()
    init: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies, with what stands beside it."""
        return self.path if self.path.is_dir() else self.path.parent


def origin_of(folder: Path, params: Mapping[str, Any]) -> Origin:
    """A task's model: `checkpoint` in its folder of inputs, `lora` and `state` beside where the host put them."""
    lora, init, state = folder / LORA, folder / INIT, folder / STATE
    return Origin(
        folder / "checkpoint",
        lora if lora.exists() else None,
        params.get("lora_alpha"),
        state if state.exists() else None,
        tuple(params.get("ignore_tensors") or ()),
        init if init.exists() else None,
    )


def tokenizer_of(folder: Path, kind: str) -> Path | None:
    """The tokenizer of a task: `tokenizer` where the recipe names one, for "auto" that of the model's folder."""
    named = folder / "tokenizer"
    if named.exists():
        return named
    for name in TOKENIZERS if kind == "auto" else ():
        readable = not name.endswith(".json") or importlib.util.find_spec("tokenizers") is not None
        if readable and (found := folder / "checkpoint" / name).is_file():
            return found
    return None
