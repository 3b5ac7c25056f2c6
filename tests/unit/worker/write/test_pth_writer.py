"""Torch files that the writer makes: read by our own reader, by zipfile, and by torch where there is one."""

from __future__ import annotations

import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.chatrwkv import layout as chatrwkv
from rwkvflow.worker.formats.chatrwkv import strategy as strategy
from rwkvflow.worker.read.checkpoint import NUMPY
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.write import pth_writer
from rwkvflow.worker.write.layout import Encoding
from rwkvflow.worker.write.pth_writer import PthTensor, PthWriter, pth_layout

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
kinds = st.sampled_from(sorted(pth_writer.STORAGES))


def write(path: Path, tensors: list[PthTensor], data: dict[str, bytes], seed: int = 0, **values: str | int) -> None:
    layout = pth_layout(tensors, values)
    writer = PthWriter(path, layout)
    order = [(name, slot) for name, slots in layout.slots.items() for slot in slots]
    random.Random(seed).shuffle(order)
    for name, slot in order:
        writer.write(slot, 0, memoryview(data[name])[: slot.size // 2])
        writer.put(slot, 0, memoryview(data[name])[: slot.size // 2])
        writer.write(slot, slot.size // 2, memoryview(data[name])[slot.size // 2 :])
        writer.put(slot, slot.size // 2, memoryview(data[name])[slot.size // 2 :])
    written = writer.close()
    assert written.size == layout.size == path.stat().st_size


@given(st.lists(st.tuples(kinds, shapes), min_size=1, max_size=6), st.integers(0, 9))
@settings(deadline=None)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, tuple[int, ...]]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("pth") / "x.pth"
    tensors: list[PthTensor] = []
    data: dict[str, bytes] = {}
    for index, (dtype, shape) in enumerate(found):
        name = f"t{index}"
        tensors.append(PthTensor(name, dtype, shape, name, Encoding(None), len(shape) == 2 and seed % 2 == 1))
        data[name] = random.Random(f"{seed} {index}").randbytes(tensors[-1].nbytes)
        if dtype == "bool":
            data[name] = bytes(byte & 1 for byte in data[name])
    write(path, tensors, data, seed, _strategy="cpu fp32", _rescale_layer=6)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with open_checkpoint(path) as checkpoint:
        checkpoint.verify()
        assert dict(checkpoint.metadata) == {"_strategy": "cpu fp32", "_rescale_layer": 6}
        for tensor in tensors:
            read = checkpoint.read(tensor.name)
            flat = np.frombuffer(data[tensor.name], NUMPY[tensor.dtype])
            wanted = flat.reshape(tensor.shape[::-1]).T if tensor.transposed else flat.reshape(tensor.shape)
            assert read.tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(6, dtype="<f4")
    tensors = [
        PthTensor("a", "f32", (3, 2), "a", Encoding(None), transposed=True),
        PthTensor("b", "bf16", (2, 3, 1), "b", Encoding(None)),
    ]
    data = {"a": values.tobytes(), "b": np.array([0x3F80, 0x4000, 0x4040] * 2, "<u2").tobytes()}
    write(tmp_path / "x.pth", tensors, data, _version="0.7", large=1 << 40)
    for options in ({}, {"mmap": True}):
        read = torch.load(tmp_path / "x.pth", weights_only=True, map_location="cpu", **options)
        assert list(read) == ["a", "b", "_version", "large"]
        assert (read["_version"], read["large"]) == ("0.7", 1 << 40)
        assert read["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert read["a"].stride() == (1, 3)
        assert read["b"].flatten().tolist() == [1, 2, 3] * 2
        assert read["b"].dtype == torch.bfloat16


@pytest.mark.soak
def test_files_and_records_of_more_than_4_gib(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = [
        PthTensor("a", "u8", (1 << 32,), "a", Encoding(None)),
        PthTensor("b", "u8", (3,), "b", Encoding(None)),
    ]
    layout = pth_layout(tensors)
    writer = PthWriter(tmp_path / "x.pth", layout)
    (slot,) = layout.slots["a"]
    for start in range(0, slot.size, 1 << 28):
        writer.write(slot, start, memoryview(bytes(1 << 28)))
        writer.put(slot, start, memoryview(bytes(1 << 28)))
    writer.write(layout.slots["b"][0], 0, memoryview(b"xyz"))
    writer.put(layout.slots["b"][0], 0, memoryview(b"xyz"))
    writer.close()
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.read("archive/data/1") == b"xyz"
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.verify() > 1 << 32
    assert torch.load(tmp_path / "x.pth", mmap=True, weights_only=True)["b"].tolist() == list(b"xyz")


# ---- strategies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("cpu fp32", 3, "cpu f32 f32 x4"),
        ("cuda fp16 *2 -> cpu fp32", 4, "cuda f16 f16 x2, cpu f32 f32 x3"),
        ("cuda fp16i8 *10 -> cuda fp16", 4, "cuda f16 u8 x5"),
        ("cuda:0 bf16 -> cuda:1 bf16", 4, "cuda:0 bf16 bf16 x2, cuda:1 bf16 bf16 x3"),
        ("cuda fp16i8 *2 -> cuda fp16 *0+ -> cpu fp32 *1", 4, "cuda f16 u8 x2, cuda f16 f16 x2, cpu f32 f32 x1"),
        ("cuda fp16 *2 -> cpu bf16 *1", 4, "cuda f16 f16 x2, cpu bf16 bf16 x3"),
    ],
)
def test_layers_are_shared_out_as_the_package_does(text: str, layers: int, expected: str) -> None:
    runs: list[list[object]] = []
    for stage in strategy.by_layer(strategy.parse(text), layers):
        label = f"{stage.device} {stage.dtype} {stage.matrices}"
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1  # type: ignore[operator]
        else:
            runs.append([label, 1])
    assert ", ".join(f"{label} x{count}" for label, count in runs) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "stage 1: nothing stands there"),
        ("gpu fp16", "'gpu' is no device"),
        ("cuda:x fp16", "'cuda:x' is no device"),
        ("dml fp16", "dml"),
        ("cuda", "names no type"),
        ("cuda fp8", "names no type"),
        ("cuda fp16i4", "names no type"),
        ("cuda fp16 30", r"should end in a number of layers such as \*10"),
        ("cuda fp16 *3 *4", "should end in a number of layers"),
        ("cpu fp32 ->", "stage 2: nothing stands there"),
        ("cpu fp32 *0 -> cpu bf16", r"stage 1: \*0 gives it no layers"),
        ("cuda fp16 *1+ -> cuda fp16 *1+", "stage 2: only one stage can stream"),
        (" -> ".join(["cuda:1 fp16i8 *1"] * 20), "too many for the name of a file"),
    ],
)
def test_what_is_no_strategy_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strategy.parse(text)


STAGES = st.builds(
    lambda device, dtype, i8, layers: f"{device} {dtype}{'i8' if i8 else ''}{f' *{layers}' if layers else ''}",
    st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:12", "mps"]),
    st.sampled_from(["fp16", "fp32", "bf16"]),
    st.booleans(),
    st.integers(0, 99),
)


@given(st.lists(STAGES, min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 40))
def test_a_strategy_and_its_name_say_the_same(stages: list[str], streamed: int, layers: int) -> None:
    if streamed < len(stages) and "*" in stages[streamed]:
        stages[streamed] += "+"
    text = "  ->".join(stages)
    item = chatrwkv.of_strategy(text)
    assert item.strategy == strategy.normal(item.strategy) == " -> ".join(stages)
    assert re.fullmatch(r"chatrwkv(-[a-z0-9]+)+", item.name)
    assert chatrwkv.named(item.name) == item == FORMATS[item.name]
    assert item.name in FORMATS
    assert len(strategy.by_layer(strategy.parse(text), layers)) == layers + 1


@pytest.mark.parametrize(
    "name",
    ["chatrwkv", "chatrwkv-", "chatrwkv-cuda", "chatrwkv-cuda-fp16-x01", "chatrwkv-cuda-fp16-", "chatrwkv-cuda-fp16-x0",
     "chatrwkv-cpu-fp32-cuda-fp8", "chatrwkv-cuda01-fp16", "chatrwkv-CPU-fp32", "chatrwkv-cpu-fp32/../x", "ggml-q9"],
)  # fmt: skip
def test_names_that_describe_no_strategy(name: str) -> None:
    assert FORMATS.get(name) is None
    assert name not in FORMATS
