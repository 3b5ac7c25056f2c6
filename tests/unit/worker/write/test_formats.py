"""The registry, and the layouts that formats plan: pure functions of names and shapes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import FileFormat as FileFormatBase
from rwkvflow.worker.formats.ggml.layout import KINDS
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.model.weight_types import QUANTIZED
from rwkvflow.worker.write.file import FileWriter
from rwkvflow.worker.write.layout import Layout, LayoutBuilder, Slot
from tests.helpers import checkpoints

Tensors = Mapping[str, TensorInfo]


def tensors_of(version: str, dtype: str = "bf16", **sizes: Any) -> dict[str, TensorInfo]:
    shapes = checkpoints.shapes(version, **sizes)
    return {name: TensorInfo(name, dtype, shape) for name, shape in shapes.items()}


def layout_of(name: str, tensors: Tensors, architecture: Architecture | None = None) -> Layout:
    item = FORMATS[name]
    assert isinstance(item, FileFormatBase)
    return item.layout(architecture or architecture_of(tensors), tensors)


# ---- the registry ---------------------------------------------------------------------------------------------


def test_names_that_recipes_rely_on() -> None:
    seven = [f"ggml-{kind}" for kind in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k")]
    wanted = [*seven, *(f"{name}-from-f32" for name in seven[2:]), "safetensors"]
    assert [name for name in FORMATS if name in wanted] == wanted
    assert FORMATS["ggml-q5_1"].suffix == "-Q5_1.bin"
    assert len({item.suffix for item in FORMATS.values()}) == len(FORMATS)


def test_quality_limits_loosen_with_fewer_bits() -> None:
    for suffix in ("", "-from-f32"):
        for order in (("q8_0", "q5_1", "q4_0"), ("q8_0", "q5_k", "q4_k")):
            limits = [FORMATS[f"ggml-{kind}{suffix}"].limits for kind in order]
            assert limits[0].logits < limits[1].logits < limits[2].logits
            assert limits[0].perplexity < limits[1].perplexity < limits[2].perplexity


def test_importing_the_registry_imports_no_numpy() -> None:
    code = "import sys, rwkvflow.worker.formats; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4]).returncode == 0


def test_a_version_that_a_format_cannot_hold_is_refused_by_name() -> None:
    architecture = architecture_of(tensors_of("7"))
    assert all((item.refuse(architecture) is None) == ("7" in item.versions) for item in FORMATS.values())
    import dataclasses

    only_4 = dataclasses.replace(FORMATS["safetensors"], versions=frozenset({"4"}))
    assert only_4.refuse(architecture) == "safetensors cannot hold version 7; it holds 4"


@pytest.mark.parametrize("version", ["5.2", "6"])
def test_a_single_head_is_refused_where_the_file_could_not_tell_it(version: str) -> None:
    one, two = (architecture_of(tensors_of(version, width=width)) for width in (64, 128))
    assert "single head" in (FORMATS["ggml-f16"].refuse(one) or "")
    assert FORMATS["ggml-f16"].refuse(two) is None


def test_another_epsilon_is_refused_where_the_runtime_has_its_own() -> None:
    for version in VERSIONS:
        architecture = architecture_of(tensors_of(version), 1e-5)
        for name, item in FORMATS.items():
            told = item.refuse(architecture)
            if version not in item.versions or version == "4":
                continue
            if name.startswith(("gguf-", "transformers", "prefab-", "mlx")):
                assert told == (
                    f"{name} cannot hold a model whose head group norm has an epsilon of 1e-05: "
                    "what runs it has 0.00064"
                )
            else:
                assert told is None
    assert FORMATS["transformers"].refuse(architecture_of(tensors_of("4"), 1e-5)) is None


# ---- layouts --------------------------------------------------------------------------------------------------


FILES = [
    (name, version)
    for name, item in FORMATS.items()
    if isinstance(item, FileFormatBase)
    for version in VERSIONS
    if version in item.versions
]


@pytest.mark.parametrize(("name", "version"), FILES)
def test_layouts_cover_the_file(name: str, version: str) -> None:
    tensors = tensors_of(version)
    layout = layout_of(name, tensors)
    pieces = sorted(
        [(offset, len(data)) for offset, data in layout.literals]
        + [(slot.offset, slot.size) for slots in layout.slots.values() for slot in slots]
    )
    at = 0
    for offset, size in pieces:
        assert offset == at
        at += size
    assert at == layout.size == FORMATS[name].expected_size(architecture_of(tensors), tensors)
    folded = {name for name in tensors if ".ln0." in name} if version != "7" else set()
    assert set(layout.slots) == set(tensors) - (folded if name.startswith(("chatrwkv", "faster")) else set())


def headers(layout: Layout) -> dict[str, tuple[int, tuple[int, ...]]]:
    """(type, dims in PyTorch's order) of each tensor, in order, from the literals of a ggml layout."""
    out = {}
    for _, data in layout.literals:
        at = 24 if data[:4] == b"fmgg" else 0  # the first tensor's header stands right behind the file's
        while at < len(data):
            dims, length, kind = struct.unpack_from("<3i", data, at)
            shape = struct.unpack_from(f"<{dims}i", data, at + 12)[::-1]
            start = at + 12 + 4 * dims
            out[data[start : start + length].decode()] = (kind, shape)
            at = start + length
    return out


def test_shapes_of_version_7() -> None:
    found = headers(layout_of("ggml-f16", tensors_of("7", layers=2)))
    names = list(found)
    assert found["blocks.0.att.x_rwkvag"] == (0, (6, 1, 128))
    assert names[names.index("blocks.0.att.x_rwkvag") - 1] == "blocks.0.ln2.bias"
    assert not any(name.endswith(("x_r", "x_w", "x_v", "x_a", "x_g")) for name in found)
    rank = checkpoints.lora_ranks("7", 128)["g"]
    assert found["blocks.1.att.g1"] == (1, (rank, 128))
    assert found["blocks.1.att.g2"] == (1, (128, rank))
    assert found["blocks.0.ffn.x_k"] == (0, (1, 1, 128))
    assert found["blocks.1.att.v0"][0] == found["blocks.1.att.r_k"][0] == 0
    assert "blocks.0.att.v1" not in found
    quantized = headers(layout_of("ggml-q4_0", tensors_of("7", layers=2)))
    kinds = {name: kind for name, (kind, _) in quantized.items() if kind == KINDS["q4_0"]}
    assert {name.split(".", 2)[-1] for name in kinds} == {
        *(f"att.{x}.weight" for x in ("receptance", "key", "value", "output")),
        *(f"ffn.{x}.weight" for x in ("key", "value")),
    }
    assert quantized["emb.weight"][0] == quantized["head.weight"][0] == quantized["blocks.1.att.w1"][0] == 1
    from_f32 = headers(layout_of("ggml-q4_0-from-f32", tensors_of("7", layers=2)))
    assert from_f32["emb.weight"][0] == from_f32["blocks.1.att.w1"][0] == 0


def test_shapes_of_version_6() -> None:
    tensors = tensors_of("6")
    found = headers(layout_of("ggml-f16", tensors))
    assert found["blocks.0.att.time_maa_w1"] == (0, (160, 128))
    assert found["blocks.0.att.time_maa_w2"] == (0, (5, 128, 32))
    assert found["blocks.0.att.time_decay_w1"] == (0, (64, 128))
    assert found["blocks.0.att.time_decay"] == (0, (2, 64, 1))
    assert found["blocks.0.att.time_faaaa"] == (0, (2, 64, 1))
    assert found["blocks.0.att.time_maa_x"] == (0, (128,))
    layout = layout_of("ggml-q8_0", tensors)
    quantized = headers(layout)
    for name in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):  # 2-D, so rwkv.cpp quantizes them: from F32
        assert quantized[f"blocks.0.att.{name}"][0] == KINDS["q8_0"]
        assert not layout.slots[f"blocks.0.att.{name}"][0].encoding.via_f16
    assert quantized["blocks.0.att.time_maa_w2"][0] == 0
    assert layout.slots["blocks.0.att.key.weight"][0].encoding.via_f16


@pytest.mark.parametrize(
    ("version", "decay", "bonus"),
    [
        ("4", (128,), (128,)),
        ("5.0", (2, 1, 1), (2, 1, 1)),
        ("5.1", (2, 1), (2, 1)),
        ("5.2", (2, 64, 1), (2, 64, 1)),
    ],
)
def test_shapes_of_versions_4_and_5(version: str, decay: tuple[int, ...], bonus: tuple[int, ...]) -> None:
    for name in ("ggml-f16", "ggml-q5_1"):
        found = headers(layout_of(name, tensors_of(version)))
        first = "time_first" if version in ("4", "5.0") else "time_faaaa"
        assert found["blocks.0.att.time_decay"] == (0, decay)
        assert found[f"blocks.0.att.{first}"] == (0, bonus)
        assert found["blocks.0.att.time_mix_k"] == (0, (128,))
        assert found["blocks.0.ln0.weight"] == (0, (128,))


def test_rows_that_are_no_whole_blocks_stay_unquantized() -> None:
    tensors = tensors_of("4", width=48, ffn=64)
    layout = layout_of("ggml-q4_1", tensors)
    found = headers(layout)
    assert found["blocks.0.ffn.value.weight"] == (KINDS["q4_1"], (48, 64))
    assert found["blocks.0.att.key.weight"] == (1, (48, 48))
    assert any("blocks.0.att.key.weight stays unquantized: rows of 48" in remark for remark in layout.remarks)


@pytest.mark.parametrize(("name", "other"), [("ggml-q4_k", "q5_0"), ("ggml-q5_k-from-f32", "q5_1")])
def test_rows_that_are_no_whole_super_blocks_get_llama_cpps_other_types(name: str, other: str) -> None:
    layout = layout_of(name, tensors_of("4", width=64, ffn=512))
    found = headers(layout)
    assert found["blocks.0.ffn.value.weight"] == (KINDS[name[5:9]], (64, 512))
    assert found["blocks.0.ffn.key.weight"] == (KINDS[other], (512, 64))
    more = [kind for kind, _ in found.values()].count(KINDS[other]) - 1
    which = f"blocks.0.att.receptance.weight and {more} more"
    assert layout.remarks == (f"{name}: {other.upper()} instead for {which}: rows of 64, not a multiple of 256",)
    layout = layout_of(name, tensors_of("4", width=48, ffn=512))
    assert headers(layout)["blocks.0.att.key.weight"][0] == (1 if name == "ggml-q4_k" else 0)
    assert f"{name}: blocks.0.att.key.weight stays unquantized: rows of 48, not a multiple of 32" in layout.remarks


def test_an_incomplete_layer_of_version_7_is_named() -> None:
    whole = tensors_of("7")
    architecture = architecture_of(whole)
    tensors = {name: info for name, info in whole.items() if name != "blocks.1.att.x_a"}
    with pytest.raises(WorkerError, match=r"no blocks\.1\.att\.x_a"):
        layout_of("ggml-f32", tensors, architecture)


def test_quantized_slots_are_whole_blocks() -> None:
    for name, version in FILES:
        for slots in layout_of(name, tensors_of(version)).slots.values():
            for slot in slots:
                assert slot.encoding.kind not in QUANTIZED or slot.size % 2 == 0


def test_safetensors_keeps_wide_types_aligned() -> None:
    tensors = tensors_of("4")
    mixed = {
        name: TensorInfo(name, "f32" if index % 3 else "bf16", info.shape)
        for index, (name, info) in enumerate(tensors.items())
    }
    layout = layout_of("safetensors", mixed)
    (length,) = struct.unpack_from("<Q", layout.literals[0][1])
    assert length % 8 == 0
    header = json.loads(layout.literals[0][1][8:])
    assert list(header) == sorted(header)
    for name, entry in header.items():
        assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0, name
        (slot,) = layout.slots[name]
        assert slot.offset == 8 + length + entry["data_offsets"][0]


# ---- the writer of a file -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_and_its_hash_do_not_depend_on_the_order_of_arrival(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import hashlib

    from rwkvflow.worker.write.layout import Encoding

    build = LayoutBuilder()
    content = bytearray()
    parts = data.draw(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=12))
    waiting: list[tuple[Slot, bytes]] = []
    for index, (literal, part) in enumerate(parts):
        content += part
        if literal:
            build.literal(part)
        elif part:
            build.slot(str(index), len(part), Encoding(None), size=len(part))
    layout = build.done()
    for index, (literal, part) in enumerate(parts):
        if not literal and part:
            waiting.append((layout.slots[str(index)][0], part))
    path = tmp_path_factory.mktemp("file") / "x"
    writer = FileWriter(path, layout)
    for slot, part in data.draw(st.permutations(waiting)):
        cut = data.draw(st.integers(0, len(part)))
        for start, piece in ((0, part[:cut]), (cut, part[cut:])):
            if piece:
                writer.write(slot, start, memoryview(piece))
                writer.put(slot, start, memoryview(piece))
    written = writer.close()
    assert path.read_bytes() == bytes(content)
    assert written.size == len(content)
    assert written.sha256 == hashlib.sha256(content).hexdigest()


def test_an_incomplete_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    layout = layout_of("safetensors", tensors_of("4"))
    writer = FileWriter(tmp_path / "x", layout)
    with pytest.raises(ValueError, match="complete up to byte"):
        writer.close()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
