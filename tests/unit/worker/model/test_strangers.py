"""Checkpoints that look like a version and are not, and tensors that nobody knows: refused by name, everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rwkvflow.cli import cli
from rwkvflow.worker.errors import UnknownModelError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.strangers import ignored, refuse_unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.variants import (
    CALLED,
    KNOWN_HYBRIDS,
    VARIANTS,
    Hybrid,
    hybrid_called,
    hybrid_of,
    refuse_called,
    variant_of,
)
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints

Shapes = dict[str, tuple[int, ...]]
WIDTH = 64

#: What each adds to a version's tensors, as its makers name them.
ADDED: dict[str, tuple[str, Shapes]] = {
    "4a or 4b": ("4", {"blocks.1.tiny_ln.weight": (WIDTH,), "blocks.1.tiny_q.weight": (8, WIDTH)}),
    "7a": ("7", {f"blocks.0.ffn.{x}": s for x, s in {"s_emb.weight": (320, 1024), "s0": (WIDTH, 32)}.items()}),
    "7b": ("7", {"blocks.0.ffn.s_emb.weight": (320, 1024), "blocks.1.qkv.qq.weight": (WIDTH, WIDTH)}),
    "8 rc00": ("7", {"blocks.0.ffn.enn.weight": (320, WIDTH)}),
    "8 rc00-hybrid": ("7", {"blocks.0.ffn.enn.weight": (320, WIDTH), "blocks.1.qkv.kkup.weight": (WIDTH, WIDTH)}),
}
MORE_OF_4 = ("head_q.weight", "head_k.weight", "copy_mask", "pos_emb_x", "blocks.0.tiny_mask", "blocks.0.tiny_v.weight")


def add(version: str, more: Shapes) -> list[checkpoints.Entry]:
    made = checkpoints.entries(version, layers=2, width=WIDTH)
    return made + [checkpoints.array_entry(name, np.ones(shape, np.float32), "bf16") for name, shape in more.items()]


def write(path: Path, version: str, more: Shapes) -> Path:
    writer = checkpoints.write_safetensors if path.suffix == ".safetensors" else checkpoints.write_pth
    writer(path, add(version, more))
    return path


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_variant_is_refused_by_name(tmp_path: Path, name: str, suffix: str) -> None:
    version, more = ADDED[name]
    path = write(tmp_path / f"rwkv7-g1{suffix}", version, more)  # what its file is called does not matter
    with open_checkpoint(path) as checkpoint, pytest.raises(UnknownModelError, match=f"RWKV-{name},"):
        architecture_of(checkpoint.tensors)
    assert f"RWKV-{name}," in describe(path)["problem"]
    for command in (["init", str(path)], ["convert", str(path), str(tmp_path / "o.bin"), "--format", "ggml-f16"]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code != 0
        assert f"RWKV-{name}," in str(result.exception)


@pytest.mark.parametrize("name", MORE_OF_4)
def test_each_mark_of_4a_is_enough(name: str) -> None:
    found = variant_of([*checkpoints.shapes("4", width=WIDTH), name])
    assert found is not None
    assert found.name == "4a or 4b"


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("ARWKV-7", ("model.layers.0.self_attn.time_mixer.r_k", "model.layers.0.mlp.gate_proj.weight")),
        ("ARWKV-7", ("model.layers.0.self_attn.x_r", "model.layers.0.mlp.down_proj.weight")),
        ("QRWKV-6", ("model.layers.0.self_attn.time_maa_x", "model.layers.0.mlp.up_proj.weight")),
    ],
)
def test_hybrids_are_told_by_their_tensors(label: str, names: tuple[str, ...]) -> None:
    found = hybrid_of(names)
    assert found is not None
    assert found.label == label
    assert variant_of(names) is None
    assert hybrid_of(names[:1]) is None


def test_openmoses_hybrids_are_told_by_their_tensors() -> None:
    names = ("model.layers.0.self_attn.w0", "model.layers.5.self_attn.q_proj.weight", "model.layers.0.mlp.a")
    found = variant_of(names)
    assert found is not None
    assert found.name.startswith("hxa07x")


@pytest.mark.parametrize("hybrid", KNOWN_HYBRIDS)
def test_hybrids_are_told_by_what_config_json_calls_them(hybrid: Hybrid) -> None:
    for name in hybrid.called:
        for config in ({"architectures": [name]}, {"model_type": name}, {"model_type": 3, "architectures": [4, name]}):
            assert hybrid_called(config) is hybrid
            refuse_called(config)
    assert hybrid_called({"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7"}) is None


@pytest.mark.parametrize("name", [*CALLED, "hxa079", "cxa075", "rwkv_hxa078", "HRWKV7-hxa079-Qwen3-8B"])
def test_strange_hybrids_are_told_by_what_they_are_called(name: str) -> None:
    for config in ({"architectures": [name]}, {"model_type": name}, {"general.architecture": name}):
        with pytest.raises(UnknownModelError, match=f"it is called {name}"):
            refuse_called(config)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_is_no_variant(version: str) -> None:
    assert variant_of(checkpoints.shapes(version, width=WIDTH)) is None
    assert hybrid_of(checkpoints.shapes(version, width=WIDTH)) is None
    refuse_called({"architectures": ["RwkvForCausalLM", "RWKV7ForCausalLM"], "model_type": "rwkv7"})


def test_every_variant_is_tested() -> None:
    assert {variant.name for variant in VARIANTS if variant.marks[0].startswith(r"blocks")} == set(ADDED)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_tensor_is_refused_with_its_shape_unless_it_is_ignored(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "x.pth", version, {"blocks.1.att.riddle": (3, 5), "loss": (1,)})
    with open_checkpoint(path) as checkpoint:
        found = architecture_of(checkpoint.tensors)
        with pytest.raises(UnknownModelError, match=r"'blocks\.1\.att\.riddle' \[3, 5\]\. .*--ignore-tensors"):
            refuse_unknown(checkpoint.tensors, found)
    assert "riddle" in describe(path)["problem"]
    assert describe(path)["architecture"]["version"] == version
    with open_checkpoint(Origin(path, ignore=("blocks.*.riddle",))) as checkpoint:
        refuse_unknown(checkpoint.tensors, architecture_of(checkpoint.tensors))
        assert "blocks.1.att.riddle" not in checkpoint.tensors


def test_no_pattern_is_idle_and_none_makes_a_version_of_a_variant() -> None:
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in checkpoints.shapes("7", width=WIDTH).items()}
    with pytest.raises(UnknownModelError, match="no tensor is called like 'nothing'"):
        ignored(tensors, ["emb.*", "nothing"])
    name = "blocks.0.ffn.s_emb.weight"
    with pytest.raises(UnknownModelError, match="RWKV-7a"):
        ignored({**tensors, name: TensorInfo(name, "bf16", (320, 1024))}, ["*.s_emb.weight"])


@pytest.mark.parametrize("name", ["ggml-f16", "safetensors", "web-rwkv"])
def test_what_trainers_leave_is_left_out_and_said(name: str) -> None:
    shapes = checkpoints.shapes("7", width=WIDTH) | {"loss": (1,), "ema.decay": (1,), "step": ()}
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    held = FORMATS[name].held(architecture_of(tensors), tensors)
    assert set(tensors) - set(held) == {"loss", "ema.decay", "step"}
    (said,) = FORMATS[name].left_out(held, tensors)
    assert "loss, ema.decay, step" in said


def test_a_bin_has_no_values_of_layer_0_that_nothing_uses() -> None:
    more = {"blocks.0.att.v0": (1, 1, WIDTH), "blocks.0.att.v1": (WIDTH, 32), "blocks.0.att.v2": (32, WIDTH)}
    shapes = checkpoints.shapes("7", width=WIDTH) | more
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    architecture = architecture_of(tensors)
    held = FORMATS["ggml-f16"].held(architecture, tensors)
    assert set(tensors) - set(held) == set(more)
    layout = FORMATS["ggml-f16"].layout(architecture, held)  # type: ignore[attr-defined]
    assert not set(more) & set(layout.slots)
    assert "blocks.1.att.v0" in layout.slots
    assert set(FORMATS["safetensors"].held(architecture, tensors)) == set(tensors)
