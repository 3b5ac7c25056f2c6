"""ARWKV-7 and QRWKV-6: what is read of their folders, what they may be made into, and what is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rwkvflow.cli import cli
from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.pairs import TEXT, gguf_text, head, pair
from rwkvflow.worker.formats.gguf.plan import planned
from rwkvflow.worker.maps import hybrids
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.model.tensorinfo import ModelTensors, TensorInfo
from rwkvflow.worker.model.variants import KNOWN_HYBRIDS, label_of
from rwkvflow.worker.model.versions import HYBRIDS, VERSIONS
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference, logits
from tests.helpers import hybrid_folders

BY_MODEL = pytest.mark.parametrize("model", hybrid_folders.MODELS)
GGUF = [name for name in FORMATS if name.startswith("gguf-")]


def told(source: Path) -> Architecture:
    with open_checkpoint(source) as checkpoint:
        found = architecture_of(checkpoint.tensors)
        refuse_unknown(checkpoint.tensors, found)
        return found


def refused(source: Path) -> str:
    with pytest.raises(WorkerError) as error:
        told(source)
    return str(error.value)


def invoked(*arguments: object) -> str:
    """What a command that fails says, remedy and all."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code != 0, result.output
    return f"{result.output}{result.exception} {getattr(result.exception, 'remedy', '')}"


def tensors_of(model: str, **sizes: Any) -> ModelTensors:
    """What a reader gives of such a folder, without one."""
    found = {}
    for theirs, shape in hybrid_folders.shapes(model, **sizes).items():
        name = hybrids.own_name(model, theirs)
        if name.endswith("att.time_decay"):
            shape = hybrids.heads(hybrid_folders.config(model, **sizes), shape[-1])
        found[name] = TensorInfo(name, "bf16", shape)
    return ModelTensors(found, {"rms_norm_eps": 1e-6})


# ---- what is read -------------------------------------------------------------------------------------------------


@BY_MODEL
def test_a_folder_is_read_whole_and_in_parts_alike(model: str, tmp_path: Path) -> None:
    whole = hybrid_folders.make(tmp_path / "whole", model)
    split = hybrid_folders.make(tmp_path / "split", model, shard=30_000)
    assert len(list(split.glob("*.safetensors"))) > 5
    assert told(whole) == told(split)
    with open_checkpoint(whole) as one, open_checkpoint(split) as other:
        assert set(one.tensors) == set(other.tensors)
        assert one.said == other.said == {"rms_norm_eps": 1e-6}
        for name in one.tensors:
            assert (one.read(name) == other.read(name)).all()


@BY_MODEL
def test_inspect_names_it_with_its_sizes(model: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    found = describe(source)
    assert (found["problem"], found["architecture"]["version"]) == (None, model)
    assert found["architecture"]["rms_norm_eps"] == 1e-6
    output = CliRunner().invoke(cli, ["inspect", str(source)]).output
    assert f"{label_of(model)} ({model})" in output
    assert "head_size        32" in output
    assert ("n_head_kv        2" in output) == (model == "rwkv6qwen2")


@settings(max_examples=40)
@given(
    st.sampled_from(hybrid_folders.MODELS),
    st.fixed_dictionaries(
        {
            "layers": st.integers(1, 9),
            "width": st.sampled_from([64, 128, 192]),
            "vocab": st.integers(266, 900),
            "ffn": st.sampled_from([32, 96, 256]),
            "head_size": st.sampled_from([16, 32]),
            "shared": st.sampled_from([1, 2, 4]),
            "gate": st.booleans(),
            "head_norm": st.booleans(),
        }
    ),
)
def test_every_tensor_has_its_place(model: str, sizes: dict[str, Any]) -> None:
    assume(sizes["width"] // sizes["head_size"] % sizes["shared"] == 0)
    tensors = tensors_of(model, **sizes)
    found = architecture_of(tensors)
    assert (found.version, found.extra, found.rms_norm_eps) == (model, (), 1e-6)
    assert (found.n_layer, found.n_embd, found.n_ffn, found.n_vocab) == tuple(
        sizes[key] for key in ("layers", "width", "ffn", "vocab")
    )
    assert (found.n_head, found.head_size) == (sizes["width"] // sizes["head_size"], sizes["head_size"])
    assert found.n_head_kv == (sizes["shared"] if model == "rwkv6qwen2" else None)
    slots = planned(found, tensors)
    unused = {f"blocks.0.att.v{n}" for n in "012"}
    assert {source for slot in slots for source in slot.sources} == set(tensors) - unused
    assert len({slot.name for slot in slots}) == len(slots)
    for slot in slots:  # no value is lost, and none made up
        numbers = sum(tensors[source].numel for source in slot.sources)
        assert numbers == np.prod(slot.shape)


@BY_MODEL
def test_the_reference_reads_on_where_it_stopped(model: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model, "f32", layers=2)
    tokens = [7, 200, 3, 3, 90, 11, 260]
    with open_checkpoint(source) as checkpoint:
        whole = logits(checkpoint, tokens)
        forward = Reference(checkpoint)
        sequence = [forward.start()]
        parts = [forward.logits(forward.hidden(sequence, [part])[0]) for part in (tokens[:3], tokens[3:4], tokens[4:])]
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-4
    assert np.abs(whole[2] - whole[3]).max() > 0.1  # the same token, after another


def test_the_reference_of_qrwkv_is_its_makers_formula(tmp_path: Path) -> None:
    """A layer written out token by token and head by head, with no array operation of the reference's."""
    source = hybrid_folders.make(tmp_path / "m", "rwkv6qwen2", "f32", layers=1)
    theirs = {
        name: hybrid_folders._values(name, shape, 0).astype("f8")
        for name, shape in hybrid_folders.shapes("rwkv6qwen2", layers=1).items()
    }
    layer = {
        name.removeprefix("model.layers.0."): values
        for name, values in theirs.items()
        if name.startswith("model.layers.0.")
    }

    def att(name: str) -> Any:
        return layer[f"self_attn.{name}"].squeeze()

    def norm(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x * x).mean() + 1e-6) * weight

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    tokens, heads, size = [7, 200, 3, 90], 4, 32
    previous, state, out = np.zeros(128), np.zeros((heads, size, size)), []
    for token in tokens:
        x = theirs["model.embed_tokens.weight"][token]
        y = norm(x, layer["input_layernorm.weight"])
        delta, previous = previous - y, y
        low = np.tanh((y + delta * att("time_maa_x")) @ att("time_maa_w1")).reshape(5, 32)
        r, k, v, w, g = (
            y + delta * (att(f"time_maa_{one}") + low[index] @ att("time_maa_w2")[index])
            for index, one in enumerate("rkvwg")
        )
        q = (att("q_proj.weight") @ r + att("q_proj.bias")).reshape(heads, size)
        key = (att("k_proj.weight") @ k + att("k_proj.bias")).reshape(2, size)
        value = (att("v_proj.weight") @ v + att("v_proj.bias")).reshape(2, size)
        decay = att("time_decay") + np.tanh(w @ att("time_decay_w1")) @ att("time_decay_w2")
        decay = np.exp(np.maximum(-np.exp(decay), -5)).reshape(heads, size)
        read = []
        for one in range(heads):
            shared = one // 2
            state[one] = decay[one][:, None] * state[one] + np.outer(key[shared] * (1 - decay[one]), value[shared])
            read.append(q[one] @ state[one] / size**0.5)
        x = x + att("o_proj.weight") @ (np.concatenate(read) * sigmoid(att("gate.weight") @ g))
        y = norm(x, layer["post_attention_layernorm.weight"])
        gate = layer["mlp.gate_proj.weight"] @ y
        x = x + layer["mlp.down_proj.weight"] @ (gate * sigmoid(gate) * (layer["mlp.up_proj.weight"] @ y))
        out.append(theirs["lm_head.weight"] @ norm(x, theirs["model.norm.weight"]))
    with open_checkpoint(source) as checkpoint:
        found = logits(checkpoint, tokens)
    assert np.abs(found - np.stack(out)).max() < 1e-4


# ---- what they may be made into -----------------------------------------------------------------------------------


@BY_MODEL
def test_only_gguf_holds_it_and_every_other_format_says_so(model: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    architecture = told(source)
    for name, item in FORMATS.items():
        why = item.refuse(architecture)
        assert (why is None) == (name in GGUF)
        if why is None:
            continue
        assert f"{name} cannot hold {label_of(model)} ({model})" in why
        said = invoked("convert", source, tmp_path / "out", "--format", name)
        assert f"m is {label_of(model)} ({model}), which {name} cannot hold" in said
        assert "these can: gguf-*" in said
        assert not (tmp_path / "out").exists()


@BY_MODEL
@pytest.mark.parametrize("name", ["gguf-f16", "gguf-q8_0", "gguf-q4_k_m"])
def test_the_size_is_told_before(model: str, name: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    result = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out"), "--format", name, "--dry-run"])
    plain = FORMATS[name].beside(source)
    with open_checkpoint(source) as checkpoint:
        size = plain.expected_size(architecture_of(checkpoint.tensors), checkpoint.tensors)
    assert result.output == f"{tmp_path / 'out'} {size} bytes\n"


@BY_MODEL
def test_a_gguf_of_it_is_no_checkpoint_and_says_what_is(model: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    said = [pair("general.architecture", TEXT, gguf_text(model.encode()))]
    path.write_bytes(head(0, said) + bytes(64))
    with pytest.raises(UnknownModelError, match=rf"{label_of(model)} \({model}\), which llama.cpp runs"):
        open_checkpoint(path).close()
    found = describe(path)
    assert (found["architecture"]["version"], found["problem"]) == (model, None)


def test_hybrids_are_no_versions_and_have_names() -> None:
    assert not set(HYBRIDS) & set(VERSIONS)
    assert {hybrid.name for hybrid in KNOWN_HYBRIDS} == set(HYBRIDS)
    assert [label_of(name) for name in (*HYBRIDS, "7")] == ["QRWKV-6", "ARWKV-7", "RWKV-7"]


# ---- what is refused ----------------------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[str, str, Any]] = [
    ("arwkv7", "vocab_size", 300),
    ("arwkv7", "head_size", 64),
    ("arwkv7", "wkv_version", 6),
    ("arwkv7", "wkv_has_gate", False),
    ("arwkv7", "wkv_has_group_norm", True),
    ("arwkv7", "hidden_act", "gelu"),
    ("arwkv7", "quantization_config", {"bits": 4}),
    ("rwkv6qwen2", "hidden_size", 64),
    ("rwkv6qwen2", "num_key_value_heads", 4),
    ("rwkv6qwen2", "lora_rank_decay", 32),
    ("rwkv6qwen2", "use_rope", True),
    ("rwkv6qwen2", "gate_rank_type", 2),
    ("rwkv6qwen2", "balance_state", False),
    ("rwkv6qwen2", "groupnorm_att", True),
    ("rwkv6qwen2", "use_tokenshift", False),
]


@pytest.mark.parametrize(("model", "key", "value"), CONTRADICTIONS)
def test_a_config_that_says_something_else_is_refused_by_its_key(
    model: str, key: str, value: Any, tmp_path: Path
) -> None:
    source = hybrid_folders.make(tmp_path / "m", model, told={key: value})
    assert f"{key} is " in refused(source)


def test_the_head_norms_epsilon_is_llama_cpps(tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", head_norm=True, told={"head_size_divisor": 4})
    assert "head_size_divisor is 4" in refused(source)
    told(hybrid_folders.make(tmp_path / "n", told={"head_size_divisor": 4}))  # without one it divides nothing


@pytest.mark.parametrize("eps", [None, "x", 0, True, float("inf")])
@BY_MODEL
def test_the_epsilon_of_the_norms_has_to_be_said(model: str, eps: Any, tmp_path: Path) -> None:
    assert "rms_norm_eps is " in refused(hybrid_folders.make(tmp_path / "m", model, told={"rms_norm_eps": eps}))


@pytest.mark.parametrize("heads", [None, 0, 3, "4"])
def test_heads_of_qrwkv_have_to_be_said(heads: Any, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", "rwkv6qwen2", told={"num_attention_heads": heads})
    assert "num_attention_heads is " in refused(source)


def test_heads_that_cannot_share_keys_are_refused() -> None:
    tensors = tensors_of("rwkv6qwen2", shared=2)
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        info = tensors[f"blocks.0.att.{name}"]
        tensors[info.name] = TensorInfo(info.name, info.dtype, (96, *info.shape[1:]))
    with pytest.raises(WorkerError, match="96 rows, which are no heads of 32 that 4 heads can share"):
        architecture_of(tensors)


@BY_MODEL
def test_a_folder_without_its_config_says_what_to_do(model: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    (source / "config.json").unlink()
    said = refused(source)
    assert f"this is {label_of(model)}, and there is no config.json beside it" in said
    assert "download the whole folder" in said


@BY_MODEL
def test_the_tensors_without_a_folder_are_named(model: str) -> None:
    shapes = hybrid_folders.shapes(model)
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    with pytest.raises(WorkerError, match=rf"tensors of {label_of(model)}.* name the folder"):
        architecture_of(tensors)


@BY_MODEL
@pytest.mark.parametrize("called", ["LlamaForCausalLM", "RWKV7ForCausalLM", "other"])
def test_a_model_that_is_called_something_else_is_refused(model: str, called: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model, told={"architectures": [called], "model_type": called})
    assert f'config.json calls the model ["{called}"], and the folder holds {label_of(model)}' in refused(source)


def test_one_hybrid_called_the_other_is_refused(tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", "arwkv7", told=hybrid_folders.config("rwkv6qwen2"))
    assert "and the folder holds ARWKV-7's tensors" in refused(source)


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        ("arwkv7", "model.layers.1.self_attn.time_mixer.g1", "blocks.1.att.g1 is missing"),
        ("arwkv7", "model.layers.0.self_attn.time_mixer.g2", "blocks.0.att.g2 is missing"),
        ("arwkv7", "model.layers.1.self_attn.time_mixer.v1", "blocks.1.att.v1 is missing"),
        ("arwkv7", "model.layers.1.mlp.up_proj.weight", "blocks.1.ffn.up.weight is missing"),
        ("rwkv6qwen2", "model.layers.1.self_attn.k_proj.bias", "blocks.1.att.key.bias is missing"),
        ("rwkv6qwen2", "model.layers.0.self_attn.gate.weight", "blocks.0.att.gate.weight is missing"),
        ("rwkv6qwen2", "model.norm.weight", "ln_out.weight is missing"),
    ],
)
def test_what_a_layer_lacks_is_named(model: str, name: str, said: str) -> None:
    tensors = tensors_of(model)
    del tensors[hybrids.own_name(model, name)]
    with pytest.raises(WorkerError, match=said.replace(".", r"\.")):
        architecture_of(tensors)


@BY_MODEL
@pytest.mark.parametrize("name", ["self_attn.riddle", "self_attn.o_proj.bias", "mlp.down_proj.bias", "riddle"])
def test_what_nobody_knows_of_it_is_refused_unless_it_is_ignored(model: str, name: str, tmp_path: Path) -> None:
    source = hybrid_folders.make(tmp_path / "m", model)
    theirs = f"model.layers.1.{name}"
    _add(source / "model.safetensors", theirs)
    ours = hybrids.own_name(model, theirs)
    assert f"'{ours}' [3]" in refused(source)
    with open_checkpoint(Origin(source, ignore=(ours,))) as checkpoint:
        refuse_unknown(checkpoint.tensors, architecture_of(checkpoint.tensors))


def test_layer_0_may_lack_the_values_that_nothing_uses() -> None:
    tensors = tensors_of("arwkv7")
    for digit in "012":
        del tensors[f"blocks.0.att.v{digit}"]
    found = architecture_of(tensors)
    names = [slot.name for slot in planned(found, tensors)]
    assert {f"blk.0.time_mix_v{digit}.weight" for digit in "012"} <= set(names)


def _add(path: Path, name: str) -> None:
    """Another tensor of three values, at the end of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    header[name] = {"dtype": "F32", "shape": [3], "data_offsets": [end, end + 12]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + bytes(12))
