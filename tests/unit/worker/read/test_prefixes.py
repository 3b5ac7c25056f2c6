"""What wraps a model is taken off its names, in every kind of file, wherever it stands and whatever stands beside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.lock.header import refuse_shapes
from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.maps.prefixes import plain_names
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints

SIZES: dict[str, Any] = {"layers": 2, "width": 64, "vocab": 40}
WRITERS = {".pth": checkpoints.write_pth, ".safetensors": checkpoints.write_safetensors}
#: What each wrapping makes of a name.
WRAPPINGS: dict[str, Callable[[str], str]] = {
    "module": lambda name: f"module.{name}",
    "model": lambda name: f"model.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "deepspeed": lambda name: f"_forward_module.model.{name}",
    "all of them": lambda name: f"module._orig_mod.model.{name}",
    "compiled blocks": lambda name: name.replace(".att.", "._orig_mod.att.").replace(".ffn.", "._orig_mod.ffn."),
    "checkpointed blocks": lambda name: f"model.{name.replace('s.1.', 's.1._checkpoint_wrapped_module.')}",
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name.replace('s.0.', 's.0._fsdp_wrapped_module.')}",
}  # fmt: skip


def entries(wrap: Callable[[str], str], version: str = "7") -> list[checkpoints.Entry]:
    made = checkpoints.entries(version, **SIZES)
    return [dataclasses.replace(entry, name=wrap(entry.name)) for entry in made]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("version", ["4", "7"])
def test_a_wrapped_model_is_the_model(tmp_path: Path, wrapping: str, suffix: str, version: str) -> None:
    wrap = WRAPPINGS[wrapping]
    beside = [checkpoints.array_entry(name, np.ones(3, "<f4")) for name in ("loss", "ema.emb.weight", "ema.decay")]
    plain = checkpoints.make(tmp_path / f"plain{suffix}", version, **SIZES)
    WRITERS[suffix](tmp_path / f"x{suffix}", [*beside, *entries(wrap, version)])
    with open_checkpoint(tmp_path / f"x{suffix}") as found, open_checkpoint(plain) as expected:
        refuse_unknown(found.tensors, architecture_of(found.tensors))
        assert list(found.tensors) == [*(entry.name for entry in beside), *expected.tensors]
        assert all(info.name == name for name, info in found.tensors.items())
        for name in expected.tensors:
            assert found.read(name).tobytes() == expected.read(name).tobytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_in_a_folder_of_shards(tmp_path: Path, suffix: str) -> None:
    made = entries(WRAPPINGS["model"])
    write = WRITERS.get(suffix, checkpoints.write_pth)
    parts = {"a": made[:10], "b": made[10:]}  # the second has no tensor that every model has
    for name, part in parts.items():
        write(tmp_path / f"{name}{suffix}", part)
    index = {entry.name: f"{name}{suffix}" for name, part in parts.items() for entry in part}
    stem = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"weight_map": index}))
    with open_checkpoint(tmp_path) as found:
        assert set(found.tensors) == set(checkpoints.shapes("7", **SIZES))


def test_hugging_face_models_too(tmp_path: Path) -> None:
    names = ("model.embeddings.weight", "lm_head.weight", "model.layers.0.attn.r_proj.weight", "model.norm.bias")
    ones = [checkpoints.array_entry(f"module._orig_mod.{name}", np.ones((3, 2), "<f4")) for name in names]
    checkpoints.write_safetensors(tmp_path / "x.safetensors", ones)
    with open_checkpoint(tmp_path / "x.safetensors") as found:
        wanted = {"emb.weight", "head.weight", "blocks.0.att.receptance.weight", "ln_out.bias"}
        assert set(found.tensors) == wanted


def test_two_models_and_two_names_of_one_tensor_are_refused() -> None:
    with pytest.raises(WorkerError, match=r"x\.pth: it holds several models, whose names begin with 'a\.' and 'b\.'"):
        plain_names(["a.emb.weight", "b.emb.weight"], "x.pth")
    with pytest.raises(WorkerError, match=r"two tensors are 'loss': 'loss' and 'model\.loss'"):
        plain_names(["loss", "model.emb.weight", "model.loss"], "x.pth")


def test_what_is_the_models_own_stays() -> None:
    for names in (
        ["emb.weight", "model.emb.weight", "module.x"],  # the model, and a copy that nobody knows
        ["model.embeddings.weight", "model.layers.0.ffn.key.weight"],
        ["blocks.0.att.key.lora_A", "model.blocks.0.x"],
        ["memb.weight", "._", "_orig_mod", ""],
    ):
        assert plain_names(names, "x") == {name: name for name in names}


def test_a_variant_is_told_from_the_header_whatever_wraps_it() -> None:
    shapes = checkpoints.shapes("7", **SIZES) | {"blocks.0.ffn.s_emb.weight": (40, 1024)}
    for wrap in WRAPPINGS.values():
        with pytest.raises(UnknownModelError, match="RWKV-7a,"):
            refuse_shapes({wrap(name): ("bf16", shape) for name, shape in shapes.items()})
