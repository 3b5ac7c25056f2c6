"""Hugging Face folders as sources: the author's tensors come back, and what contradicts itself is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.maps import hf_config
from rwkvflow.worker.maps.huggingface import own_name
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read import hf_source
from rwkvflow.worker.read.compare import compare
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints
from tests.helpers.folders import folder_of

SIZES: dict[str, Any] = {"layers": 2, "width": 64, "vocab": 40}
FOLDERS = ("4", "6", "7")


def same(one: Path, other: Path) -> None:
    """Both hold the same tensors, bit for bit, in the same order."""
    with open_checkpoint(one) as a, open_checkpoint(other) as b:
        assert list(a.tensors.items()) == list(b.tensors.items())
        for name, info in a.tensors.items():
            assert a.read(name).tobytes() == b.read(name).tobytes(), name
            if info.shape[0] > 1:
                assert a.read(name, 1, 1).tobytes() == b.read(name, 1, 1).tobytes(), name


def theirs(version: str, dtype: str = "bf16", layers: int = 2) -> list[checkpoints.Entry]:
    """A checkpoint's tensors under Hugging Face's names, sorted by name as save_pretrained writes them."""
    found = []
    for entry in checkpoints.entries(version, dtype, **{**SIZES, "layers": layers}):
        name, values = entry.name, np.frombuffer(b"".join(entry.data()), checkpoints.NUMPY[dtype]).reshape(entry.shape)
        part = name.split(".", 2)[-1]
        if version == "7":
            name = name.replace("emb.", "model.embeddings.").replace("ln_out.", "model.norm.")
            name = name.replace("head.", "lm_head.").replace("blocks.", "model.layers.").replace(".att.", ".attn.")
            for ours, hf in (
                ("ln0", "pre_norm"),
                ("ln1", "attn_norm"),
                ("ln2", "ffn_norm"),
                ("attn.ln_x", "attn.g_norm"),
            ):
                name = name.replace(f".{ours}.", f".{hf}.")
            if ".attn." in name:
                for ours in ("receptance", "key", "value", "output"):
                    name = name.replace(f".{ours}.", f".{ours[0]}_proj.")
            last = name.rpartition(".")[2]
            if len(last) == 2 and last[1] in "012":
                end = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[last[1]]
                name = f"{name[:-3]}.{last[0]}_lora.lora.{end}"
                values = values.T if last[1] != "0" else values
            if values.shape[:2] == (1, 1) and ".attn.x_" not in name:
                values = values.reshape(-1)
        else:
            name = name if name == "head.weight" else f"rwkv.{name}"
            name = name.replace("rwkv.emb.", "rwkv.embeddings.").replace(".ln0.", ".pre_ln.")
            name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
            if part.startswith(("att.time_mix_", "ffn.time_mix_")):
                words = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
                name = name[:-1] + words[name[-1]]
        found.append(checkpoints.array_entry(name, np.ascontiguousarray(values), dtype))
    return sorted(found, key=lambda entry: entry.name)


@settings(max_examples=12)
@given(
    version=st.sampled_from(FOLDERS),
    dtype=st.sampled_from(["f32", "f16", "bf16"]),
    shard=st.sampled_from([20_000, 60_000, 10**12]),
    seed=st.integers(0, 99),
)
def test_a_folder_gives_the_checkpoint_back(
    tmp_path_factory: pytest.TempPathFactory, version: str, dtype: str, shard: int, seed: int
) -> None:
    place = tmp_path_factory.mktemp("round")
    source = checkpoints.make(place / "m.pth", version, dtype, seed, **SIZES)
    folder = folder_of(source, place / "hf", shard)
    same(source, folder)
    assert {item.kind for item in compare(source, folder)} == {"equal"}
    found = describe(folder)
    assert found["architecture"]["version"] == version
    assert ("files" in found) == (shard < 10**12)


@pytest.mark.parametrize("version", [*FOLDERS, "5.2"])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_tensors_in_the_order_of_their_names(tmp_path: Path, version: str, kind: str) -> None:
    """transformers and fla save them so; layers come in their order, whatever the number of their digits."""
    source = checkpoints.make(tmp_path / "m.pth", version, "bf16", **{**SIZES, "layers": 11})
    (tmp_path / "hf").mkdir()
    write = checkpoints.write_safetensors if kind.endswith(".safetensors") else checkpoints.write_pth
    write(tmp_path / "hf" / kind, theirs(version, layers=11))
    with open_checkpoint(source) as a, open_checkpoint(tmp_path / "hf") as b:
        assert architecture_of(b.tensors) == architecture_of(a.tensors)
        assert dict(a.tensors) == dict(b.tensors)
        layers = [int(name.split(".")[1]) for name in b.tensors if name.startswith("blocks.")]
        assert layers == sorted(layers)
        assert (next(iter(b.tensors)), list(b.tensors)[-1]) == ("emb.weight", "head.weight")
        for name in a.tensors:
            assert a.read(name).tobytes() == b.read(name).tobytes(), name


@pytest.mark.parametrize("shape", [(6, -1), (6, 1, -1), (6, 1, 1, -1)])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_six_mixes_in_one_as_older_fla_has_them(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    made = {entry.name: entry for entry in theirs("7", dtype)}
    for layer in range(SIZES["layers"]):
        parts = [made.pop(f"model.layers.{layer}.attn.x_{x}") for x in "rwkvag"]
        values = [np.frombuffer(b"".join(part.data()), checkpoints.NUMPY[dtype]) for part in parts]
        name = f"model.layers.{layer}.attn.x_x"
        made[name] = checkpoints.array_entry(name, np.stack(values).reshape(shape), dtype)
    checkpoints.write_safetensors(tmp_path / "model.safetensors", made.values())
    checkpoints.make(tmp_path / "plain.pth", "7", dtype, **SIZES)
    with open_checkpoint(tmp_path / "model.safetensors") as found, open_checkpoint(tmp_path / "plain.pth") as expected:
        assert architecture_of(found.tensors).extra == ()
        assert dict(found.tensors) == dict(expected.tensors)
        for name in expected.tensors:
            assert found.read(name).tobytes() == expected.read(name).tobytes(), name


def test_mixes_in_one_that_are_not_six_are_named(tmp_path: Path) -> None:
    made = [entry for entry in theirs("7") if ".attn.x_" not in entry.name]
    odd = [checkpoints.array_entry(f"model.layers.{i}.attn.x_x", np.ones((5, 64), "<f4"), "bf16") for i in (0, 1)]
    checkpoints.write_safetensors(tmp_path / "model.safetensors", [*made, *odd])
    with (
        open_checkpoint(tmp_path / "model.safetensors") as found,
        pytest.raises(WorkerError, match=r"blocks\.0\.att\.x_r is missing"),
    ):
        architecture_of(found.tensors)


def test_the_authors_own_names_stay(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    checkpoints.make(tmp_path / "hf" / "model.safetensors", "7", **SIZES)
    source = checkpoints.make(tmp_path / "m.safetensors", "7", **SIZES)
    same(source, tmp_path / "hf")


def test_what_transformers_itself_saves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.RwkvConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64
    )
    model = transformers.RwkvForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as found:
        assert architecture_of(found.tensors).version == "4"
        for name, theirs_ in (
            ("emb.weight", "rwkv.embeddings.weight"),
            ("blocks.1.att.time_mix_k", "rwkv.blocks.1.attention.time_mix_key"),
            ("blocks.1.ffn.receptance.weight", "rwkv.blocks.1.feed_forward.receptance.weight"),
            ("blocks.0.ln0.bias", "rwkv.blocks.0.pre_ln.bias"),
            ("head.weight", "head.weight"),
        ):
            assert torch.equal(torch.from_numpy(found.read(name)), model.state_dict()[theirs_]), name


# ---- config.json ----------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {v: folder_of(checkpoints.make(tmp_path / f"{v}.pth", v, **SIZES), tmp_path / v) for v in ("4", "7")}


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("version", "key", "value", "says"),
    [
        ("4", "vocab_size", 50277, "vocab_size is 50277, and the tensors say 40"),
        ("4", "num_hidden_layers", 3, "num_hidden_layers is 3, and the tensors say 2"),
        ("4", "hidden_size", "64", 'hidden_size is "64", and the tensors say 64'),
        ("4", "layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, and the tensors say 1e-05"),
        ("4", "model_type", "rwkv7", "model_type is rwkv7, and the tensors are of version 4"),
        ("7", "head_dim", 32, "head_dim is 32, and the tensors say 64"),
        ("7", "gate_low_rank_dim", True, "gate_low_rank_dim is true"),
        ("7", "norm_eps", 1e-3, "norm_eps is 0.001"),
        ("7", "model_type", "rwkv", "model_type is rwkv, and the tensors are of version 7"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    folders: dict[str, Path], version: str, key: str, value: Any, says: str
) -> None:
    configured(folders[version], **{key: value})
    with pytest.raises(WorkerError) as caught:
        open_checkpoint(folders[version])
    assert str(caught.value).startswith("config.json contradicts the weights: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "changes", "says"),
    [
        ("7", {"hidden_act": "gelu"}, 'hidden_act is "gelu", which is not RWKV\'s ("sqrelu"'),
        ("4", {"hidden_act": "silu"}, 'hidden_act is "silu"'),
        ("7", {"norm_first": False}, "norm_first is false"),
        ("7", {"norm_bias": False}, "norm_bias is false"),
        ("7", {"attn": {"layers": [1]}}, 'attn is {"layers": [1]}'),
        ("4", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("7", {"value_dim": [64, 128]}, "value_dim is [64, 128], and the tensors say 64"),
        ("7", {"value_dim": 128}, "value_dim is 128"),
        ("4", {"model_version": "5_2"}, 'model_version is "5_2", and the tensors are of version 4'),
        ("6", {"head_size_divisor": 4}, "head_size_divisor is 4, so that the head norm has an epsilon of 0.00016"),
        ("6", {"head_size_divisor": "8"}, 'head_size_divisor is "8", which is no number'),
        ("7", {"norm_eps": 1e-5, "head_dim": 64.5}, "head_dim is 64.5, and the tensors say 64"),
    ],
)
def test_a_config_of_another_model_is_refused_with_the_key(
    version: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = folder_of(checkpoints.make(tmp_path / "m.pth", version, **SIZES), tmp_path / "hf")
    configured(folder, **changes)
    with pytest.raises(WorkerError) as caught:
        open_checkpoint(folder)
    assert says in str(caught.value)


def test_an_epsilon_of_flas_head_norm_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    """Of heads of 32 fla makes 32e-5: the recipe's group_norm_eps says so."""
    folder = tmp_path / "hf"
    folder.mkdir()
    checkpoints.make(folder / "model.safetensors", "7", layers=1, width=64, head_size=32, vocab=40)
    (folder / "model.safetensors").rename(tmp_path / "own.safetensors")
    with open_checkpoint(tmp_path / "own.safetensors") as own:
        architecture = architecture_of(own.tensors)
    assert FORMATS["transformers"].refuse(architecture) is not None
    wrong = hf_config.wrong_keys({"head_dim": 32, "norm_eps": 1e-5}, architecture)
    assert "give the model's `group_norm_eps: 0.00032`" in wrong[0]
    assert hf_config.wrong_keys({"norm_eps": 1e-5}, architecture) == []


FLA = """attn_mode hidden_size hidden_ratio intermediate_size num_hidden_layers head_dim num_heads decay_low_rank_dim
gate_low_rank_dim a_low_rank_dim v_low_rank_dim hidden_act max_position_embeddings norm_first norm_bias norm_eps attn
use_cache pad_token_id bos_token_id eos_token_id tie_word_embeddings initializer_range fuse_norm fuse_cross_entropy
fuse_linear_cross_entropy use_l2warp vocab_size value_dim model_type architectures torch_dtype transformers_version"""
AUTHORS = """architectures auto_map attention_hidden_size bos_token_id eos_token_id head_size head_size_divisor
hidden_size intermediate_size layer_norm_epsilon model_type model_version num_attention_heads num_hidden_layers
rescale_every tie_word_embeddings transformers_version use_cache vocab_size"""


def known_keys() -> set[str]:
    every = [key.name for key in hf_config.REFUSED]
    every += [*hf_config.COMPARED, *hf_config.TAKEN, *(key for keys in hf_config.IRRELEVANT.values() for key in keys)]
    assert len(every) == len(set(every)), "a key has one place"
    return set(every)


def test_every_key_of_flas_and_the_authors_configurations_is_in_the_table() -> None:
    assert set(FLA.split()) | set(AUTHORS.split()) <= known_keys()


def test_every_key_that_transformers_has_of_version_4_is_in_the_table() -> None:
    transformers = pytest.importorskip("transformers")
    own = set(transformers.RwkvConfig().to_dict()) - set(transformers.PretrainedConfig().to_dict())
    assert own <= known_keys()


def test_every_key_that_is_written_is_in_the_table(tmp_path: Path) -> None:
    for version in FOLDERS:
        folder = folder_of(checkpoints.make(tmp_path / f"{version}.pth", version, **SIZES), tmp_path / version)
        assert set(json.loads((folder / "config.json").read_text())) <= known_keys()


def test_keys_that_change_nothing_may_say_anything(tmp_path: Path) -> None:
    folder = folder_of(checkpoints.make(tmp_path / "m.pth", "7", **SIZES), tmp_path / "hf")
    for keys in hf_config.IRRELEVANT.values():
        configured(folder, **{key: 12345 for key in keys if key not in ("architectures", "auto_map")})
        open_checkpoint(folder).close()


def test_a_config_that_says_nothing_or_something_else_is_fine(folders: dict[str, Path]) -> None:
    configured(folders["7"], num_heads=32, hidden_size=None, architectures=["Whatever"], unknown={"a": [1]})
    open_checkpoint(folders["7"]).close()
    (folders["7"] / "config.json").unlink()
    open_checkpoint(folders["7"]).close()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff{}", b"[" * 100_000, b" " * (hf_source.MAX_CONFIG + 1)])
def test_a_config_that_is_none(folders: dict[str, Path], data: bytes) -> None:
    (folders["4"] / "config.json").write_bytes(data)
    with pytest.raises(
        WorkerError, match=r"config\.json: it (is not JSON|is not a JSON object|has \d+ bytes)"
    ) as caught:
        open_checkpoint(folders["4"])
    assert len(str(caught.value)) < 400


def test_a_config_that_is_a_pipe(folders: dict[str, Path]) -> None:
    (folders["4"] / "config.json").unlink()
    os.mkfifo(folders["4"] / "config.json")
    with pytest.raises(WorkerError, match="not a plain file"):
        open_checkpoint(folders["4"])


# ---- tensors --------------------------------------------------------------------------------------------------


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    entries = theirs("7")
    twin = next(entry for entry in entries if entry.name == "model.layers.0.attn.r_proj.weight")
    twin = checkpoints.Entry("blocks.0.att.receptance.weight", twin.dtype, twin.shape, twin.data)
    (tmp_path / "hf").mkdir()
    checkpoints.write_safetensors(tmp_path / "hf" / "model.safetensors", [*entries, twin])
    with pytest.raises(WorkerError, match=r"two tensors are 'blocks\.0\.att\.receptance\.weight'"):
        open_checkpoint(tmp_path / "hf")


def test_an_embedding_that_is_the_head_as_well(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    entries = [entry for entry in theirs("7") if entry.name != "lm_head.weight"]
    checkpoints.write_safetensors(tmp_path / "hf" / "model.safetensors", entries)
    with open_checkpoint(tmp_path / "hf") as found, pytest.raises(WorkerError, match=r"head\.weight is missing"):
        architecture_of(found.tensors)
    (tmp_path / "hf" / "config.json").write_text('{"tie_word_embeddings": true}')
    with open_checkpoint(tmp_path / "hf") as found:
        assert architecture_of(found.tensors).version == "7"
        assert np.array_equal(found.read("head.weight"), found.read("emb.weight"))


def test_a_header_of_10_gb_and_a_shard_that_is_missing(tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "4", **SIZES)
    folder = folder_of(source, tmp_path / "hf", 30_000)
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].write_bytes((10**10).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(WorkerError, match=r"header claims 10000000000 bytes"):
        open_checkpoint(folder)
    shards[1].unlink()
    with pytest.raises(WorkerError, match=rf"{shards[1].name}, is missing"):
        open_checkpoint(folder)


@settings(max_examples=60)
@given(name=st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0127_."), max_size=60) | st.text(max_size=30))
def test_any_name_has_one_of_the_authors(name: str) -> None:
    for whole in (name, f"rwkv.blocks.1.{name}", f"model.layers.12.{name}", f"model.layers.0.attn.{name}"):
        ours, change = own_name(whole)
        assert isinstance(ours, str)
        assert change in ("", "row", "transposed")


# ---- which files a model needs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["model.safetensors", "config.json", "README.md"], "model.safetensors"),
        (
            ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"],
            "model.safetensors.index.json",
        ),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin", "other.safetensors"], "other.safetensors"),
        (["pytorch_model.bin.index.json", "sub/model.safetensors"], "pytorch_model.bin.index.json"),
    ],
)
def test_the_file_that_tells_where_the_weights_are(names: list[str], first: str) -> None:
    assert hf_source.wanted(names) == first


def test_folders_without_one_model(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no model in the folder"):
        hf_source.wanted(["config.json", "sub/model.safetensors"])
    with pytest.raises(WorkerError, match=r"several models in one folder \(a\.safetensors, b\.safetensors\)"):
        hf_source.wanted(["b.safetensors", "a.safetensors"])


def test_parts_of_an_index() -> None:
    def index(*files: str) -> bytes:
        return json.dumps({"weight_map": {f"t{i}": file for i, file in enumerate(files)}}).encode()

    assert hf_source.parts(
        "i", index("b.safetensors", "a.safetensors", "b.safetensors"), ["a.safetensors", "b.safetensors"]
    ) == [
        "a.safetensors",
        "b.safetensors",
    ]
    with pytest.raises(WorkerError, match=r"b\.safetensors, which i names, is missing"):
        hf_source.parts("i", index("a.safetensors", "b.safetensors"), ["a.safetensors"])
    for outside in ("../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a\\b", "a\nb", ""):
        with pytest.raises(WorkerError, match="no file beside it"):
            hf_source.parts("i", index(outside), [outside])
