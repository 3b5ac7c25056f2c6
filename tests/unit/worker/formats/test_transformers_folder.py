"""The `transformers` folder: names, shapes, config, shards and tokenizer files, read by what is not ours."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.transformers.layout import layouts
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import World, world_vocabulary
from rwkvflow.worker.write.folder import FolderWriter
from rwkvflow.worker.write.layout import Layout
from tests.helpers import checkpoints

WORLD = "rwkv_vocab_v20230424.txt"


def tensors_of(version: str, dtype: str = "bf16", **sizes: Any) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape) for name, shape in checkpoints.shapes(version, **sizes).items()}


def made(version: str, shard: int = 10**12, tokenizer: Path | None = None, **sizes: Any) -> dict[str, Layout]:
    tensors = tensors_of(version, **sizes)
    return layouts(architecture_of(tensors), tensors, shard=shard, tokenizer=tokenizer)


def content(layout: Layout) -> bytes:
    """A file's literals."""
    return b"".join(data for _, data in layout.literals)


def header(layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content(layout)[8:])
    return found


def config(files: dict[str, Layout]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content(files["config.json"]))
    return found


def test_names_and_shapes_of_version_4_are_transformers_own() -> None:
    """transformers' models/rwkv: RwkvSelfAttention, RwkvFeedForward, RwkvBlock, RwkvModel, RwkvForCausalLM."""
    found = header(made("4", layers=2, width=64, vocab=100, ffn=96)["model.safetensors"])
    assert found.pop("__metadata__") == {"format": "pt"}
    shapes = {name: tuple(entry["shape"]) for name, entry in found.items()}
    block: dict[str, tuple[int, ...]] = {}
    for norm in ("ln1", "ln2"):
        block |= {f"{norm}.weight": (64,), f"{norm}.bias": (64,)}
    block |= {f"attention.{x}": (64,) for x in ("time_decay", "time_first")}
    block |= {f"attention.time_mix_{x}": (1, 1, 64) for x in ("key", "value", "receptance")}
    block |= {f"attention.{x}.weight": (64, 64) for x in ("key", "value", "receptance", "output")}
    block |= {f"feed_forward.time_mix_{x}": (1, 1, 64) for x in ("key", "receptance")}
    block |= {"feed_forward.key.weight": (96, 64), "feed_forward.value.weight": (64, 96)}
    block["feed_forward.receptance.weight"] = (64, 64)
    wanted = {f"rwkv.blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    wanted |= {"rwkv.embeddings.weight": (100, 64), "head.weight": (100, 64)}
    wanted |= {f"{norm}.{x}": (64,) for norm in ("rwkv.ln_out", "rwkv.blocks.0.pre_ln") for x in ("weight", "bias")}
    assert shapes == wanted


def test_names_and_shapes_of_version_7_are_flas() -> None:
    tensors = tensors_of("7", layers=2, width=128, vocab=256)
    rank = architecture_of(tensors).lora
    found = header(made("7", layers=2, width=128, vocab=256)["model.safetensors"])
    shapes = {name: tuple(entry["shape"]) for name, entry in found.items() if name != "__metadata__"}
    assert shapes["model.layers.0.pre_norm.weight"] == (128,)
    assert shapes["model.layers.1.attn.x_r"] == (1, 1, 128)
    assert shapes["model.layers.1.attn.w_lora.lora.0.weight"] == (rank["w"], 128)
    assert shapes["model.layers.1.attn.w_lora.lora.2.weight"] == (128, rank["w"])
    assert shapes["model.layers.1.attn.w_lora.lora.2.bias"] == (128,)
    assert shapes["model.layers.1.attn.g_lora.lora.2.weight"] == (128, rank["g"])
    assert shapes["model.layers.1.attn.k_k"] == (128,)
    assert shapes["model.layers.1.attn.r_k"] == (2, 64)
    assert shapes["model.layers.1.ffn.x_k"] == (128,)
    assert shapes["model.norm.bias"] == shapes["model.layers.0.attn.g_norm.weight"] == (128,)
    assert shapes["lm_head.weight"] == shapes["model.embeddings.weight"] == (256, 128)
    assert "model.layers.1.attn.v_lora.lora.0.weight" in shapes
    assert not any(name.startswith("model.layers.0.attn.v_lora") for name in shapes)
    assert not any("g_lora.lora.2.bias" in name for name in shapes)
    assert sum(map(math.prod, shapes.values())) == sum(info.numel for info in tensors.values())


def test_version_6_keeps_shapes_and_most_names() -> None:
    found = header(made("6", layers=1)["model.safetensors"])
    assert found["rwkv.blocks.0.attention.time_maa_w2"]["shape"] == [5, 32, 128]
    assert found["rwkv.blocks.0.attention.time_faaaa"]["shape"] == [2, 64]
    assert found["rwkv.blocks.0.feed_forward.time_maa_k"]["shape"] == [1, 1, 128]
    odd = architecture_of(tensors_of("6", lora={"maa": 32, "decay": 16}))
    assert "low-rank matrices of 32 and 16" in (FORMATS["transformers"].refuse(odd) or "")


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_versions_without_a_runtime_are_refused(version: str) -> None:
    refused = FORMATS["transformers"].refuse(architecture_of(tensors_of(version)))
    assert refused == f"transformers cannot hold version {version}; it holds 4, 6, 7"


def test_config_says_what_the_tensors_say() -> None:
    four = config(made("4", layers=3, width=64, vocab=50277, ffn=96))
    assert four["architectures"] == ["RwkvForCausalLM"]
    sizes = ("vocab_size", "hidden_size", "attention_hidden_size", "intermediate_size", "num_hidden_layers")
    assert [four[name] for name in sizes] == [50277, 64, 64, 96, 3]
    assert (four["bos_token_id"], four["eos_token_id"], four["rescale_every"]) == (0, 0, 6)
    assert four["torch_dtype"] == "bfloat16"
    seven = config(made("7", layers=3, width=192, vocab=256))
    assert (seven["head_dim"], seven["num_heads"], seven["value_dim"]) == (64, 3, [192] * 3)
    assert seven["hidden_ratio"] == 4.0
    rank = checkpoints.lora_ranks("7", 192)
    assert [seven[f"{x}_low_rank_dim"] for x in ("decay", "a", "v", "gate")] == [rank[x] for x in "wavg"]


@settings(max_examples=40, deadline=None)
@given(version=st.sampled_from(["4", "6", "7"]), shard=st.integers(1, 400_000))
def test_shards_hold_each_tensor_once_and_stay_below_the_limit(version: str, shard: int) -> None:
    files = made(version, shard=shard, layers=2, width=128, vocab=256)
    parts = {name: layout for name, layout in files.items() if name.endswith(".safetensors")}
    whole = header(made(version, layers=2, width=128, vocab=256)["model.safetensors"])
    del whole["__metadata__"]
    if len(parts) == 1:
        assert list(parts) == ["model.safetensors"]
        assert "model.safetensors.index.json" not in files
        return
    index = json.loads(content(files["model.safetensors.index.json"]))
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(b - a for a, b in (e["data_offsets"] for e in whole.values()))
    for name, layout in parts.items():
        held = header(layout)
        del held["__metadata__"]
        assert {index["weight_map"][tensor] for tensor in held} == {name}
        assert len(held) == 1 or sum(slot.size for slots in layout.slots.values() for slot in slots) <= shard
    count = len(parts)
    assert sorted(parts) == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def test_tokenizer_files(tmp_path: Path) -> None:
    path = world_vocabulary()
    if path is not None:
        assert content(made("7", vocab=65536)[WORLD]) == path.read_bytes()
    written = tmp_path / WORLD
    written.write_bytes(content(made("7", vocab=256)[WORLD]))
    world = World(written)
    assert world.decode(world.encode("a\n'\\\" é")) == "a\n'\\\" é"
    assert WORLD not in made("4", vocab=50277)
    remarks = [remark for layout in made("4", vocab=50277).values() for remark in layout.remarks]
    assert any("no tokenizer files" in remark for remark in remarks)


SCRIPT = """\
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
folders, texts = json.loads(sys.argv[1])
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = [tokenizer.encode(text) for text in texts]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.decode([0], skip_special_tokens=True)]
    tokenizer.save_pretrained(folder + "-saved")
    saved = AutoTokenizer.from_pretrained(folder + "-saved", trust_remote_code=True)
    again = [saved.encode(text) for text in texts]
    print(json.dumps([type(tokenizer).__name__, ids, [tokenizer.decode(row) for row in ids], special, again == ids]))
"""


def test_transformers_loads_the_tokenizer_and_agrees_with_others(tmp_path: Path) -> None:
    """Of World vocabularies with PyPI's pyrwkv-tokenizer; of single bytes with themselves."""
    pytest.importorskip("transformers")
    others = pytest.importorskip("pyrwkv_tokenizer").RWKVTokenizer()
    folders = []
    for version, vocab in (("4", 65536), ("6", 65536), ("7", 65536), ("7", 256)):
        folder = tmp_path / f"{version}-{vocab}"
        folder.mkdir()
        folders.append(str(folder))
        for name, layout in made(version, vocab=vocab, width=64, layers=1).items():
            if not name.endswith(".safetensors"):
                (folder / name).write_bytes(content(layout))
    texts = ["", "Hello 世界 <s> é 🦆\n\n\tUser: a  b <|x|>", "猫头鹰" * 5, " , . ' n't \u2028 end", "x" * 300]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", SCRIPT, json.dumps([folders, texts])]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(folders)
    for made_in, (name, ids, back, special, saved) in zip(folders, rows, strict=True):
        assert name == "RwkvTokenizer"
        assert ids == [list(text.encode()) if made_in.endswith("-256") else others.encode(text) for text in texts]
        assert back == texts
        assert special == [0, 0, ""]
        assert saved


def test_a_tokenizer_that_the_recipe_names_goes_in(tmp_path: Path) -> None:
    named = tmp_path / "tokenizer"
    named.write_text(
        '{"added_tokens": [{"id": 0, "content": "<|endoftext|>"}], "model": {"vocab": {"a": 50276}}}', encoding="utf-8"
    )
    files = made("4", vocab=50277, tokenizer=named)
    assert content(files["tokenizer.json"]) == named.read_bytes()
    assert json.loads(content(files["tokenizer_config.json"]))["eos_token"].endswith("text|>")
    named.write_text("{nonsense", encoding="utf-8")
    with pytest.raises(WorkerError, match=r"not a tokenizer\.json"):
        made("4", vocab=50277, tokenizer=named)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), shard=st.integers(1000, 400_000))
def test_a_folder_holds_what_was_put_into_it(tmp_path_factory: pytest.TempPathFactory, seed: int, shard: int) -> None:
    tensors = tensors_of("4", layers=1, width=32, vocab=40)
    files = layouts(architecture_of(tensors), tensors, shard=shard)
    path = tmp_path_factory.mktemp("folder") / "x"
    writer = FolderWriter(path, files)
    random = np.random.default_rng(seed)
    values = {name: random.bytes(info.nbytes) for name, info in tensors.items()}
    for name in random.permutation(list(values)):
        (slot,) = writer.slots[name]
        cut = int(random.integers(0, len(values[name]) + 1))
        for start, part in ((0, values[name][:cut]), (cut, values[name][cut:])):
            if part:
                writer.write(slot, start, memoryview(part))
                writer.put(slot, start, memoryview(part))
    written = writer.close()
    assert written.sha256 is None
    assert written.size == sum(file.stat().st_size for file in path.iterdir()) == writer.size
    import safetensors.numpy

    for file in path.glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                first, last = (8 + length + at for at in entry["data_offsets"])
                assert data[first:last] in values.values()
        opened: Any = safetensors.safe_open(file, framework="np")
        assert opened.metadata() == {"format": "pt"}


def test_an_unfinished_folder_leaves_nothing(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "x", made("4"))
    with pytest.raises(ValueError, match="complete up to byte"):
        writer.close()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
