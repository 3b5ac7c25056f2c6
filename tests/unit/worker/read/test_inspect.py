"""Descriptions of any model file, and files that lie about themselves."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.ggml_file import TYPES, read_ggml_index
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.inspect import describe
from tests.helpers import checkpoints
from tests.helpers.flipped import flipped

FILES = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, *words: str) -> None:
    with pytest.raises(WorkerError) as error:
        describe(path)
    for word in (path.name, *words):
        assert word in str(error.value)


# ---- checkpoints


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_checkpoints(tmp_path: Path, version: str, suffix: str) -> None:
    path = checkpoints.make(tmp_path / f"x.{suffix}", version=version, width=64, vocab=50)
    found = describe(path)
    shapes = checkpoints.shapes(version, width=64, vocab=50)
    assert json.loads(json.dumps(found)) == found
    assert (found["file"], found["format"], found["bytes"]) == (path.name, suffix, path.stat().st_size)
    assert found["architecture"]["version"] == version
    assert found["problem"] is None
    assert {item["name"]: tuple(item["shape"]) for item in found["tensors"]} == shapes
    total = sum(item["bytes"] for item in found["tensors"])
    assert found["types"] == {"bf16": {"tensors": len(shapes), "parameters": total // 2, "bytes": total}}
    assert found["parameters"] == total // 2


def test_tensors_that_make_no_model_are_listed_with_the_reason(tmp_path: Path) -> None:
    checkpoints.write_pth(tmp_path / "x.pth", [checkpoints.Entry("a", "f32", (2,), lambda: [bytes(8)])])
    found = describe(tmp_path / "x.pth")
    assert found["architecture"] is None
    assert "not the tensors of an RWKV checkpoint" in found["problem"]
    assert found["tensors"] == [{"name": "a", "dtype": "f32", "shape": [2], "bytes": 8}]


def test_an_unknown_file(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"hello, world")
    refused(tmp_path / "x.bin", "neither")


# ---- rwkv.cpp's files


def ggml_tensor(name: str, kind: int, shape: tuple[int, ...], nbytes: int | None = None) -> bytes:
    key, (_, values, size) = name.encode(), TYPES[kind]
    count = 1
    for length in shape:
        count *= length
    header = struct.pack(f"<3i{len(shape)}i", len(shape), len(key), kind, *reversed(shape))
    return header + key + bytes(count // values * size if nbytes is None else nbytes)


def ggml(path: Path, *tensors: bytes, header: tuple[int, ...] = (0x67676D66, 101, 3, 64, 1, 1)) -> Path:
    path.write_bytes(struct.pack("<6i", *header) + b"".join(tensors))
    return path


def test_ggml_tensors(tmp_path: Path) -> None:
    parts = [("emb.weight", 1, (3, 64)), ("a.ü", 0, (5,)), ("b", 2, (2, 32)), ("c", 3, (1, 64)), ("d", 7, (2, 2, 32))]
    parts += [("e", 8, (3, 96)), ("g", 13, (2, 512)), ("h", 14, (3, 256)), ("f", 9, (4, 32))]
    path = ggml(tmp_path / "x.bin", *(ggml_tensor(*part) for part in parts))
    index = read_ggml_index(path)
    assert (index.version, index.n_vocab, index.n_embd, index.n_layer, index.type) == (101, 3, 64, 1, "f16")
    assert [(t.name, t.type, t.shape) for t in index.tensors.values()] == [(n, TYPES[k][0], s) for n, k, s in parts]
    expected = {"emb.weight": 384, "a.ü": 20, "b": 36, "c": 40, "d": 88, "e": 216, "g": 576, "h": 528, "f": 136}
    assert {name: tensor.nbytes for name, tensor in index.tensors.items()} == expected
    last = index.tensors["f"]
    assert last.offset + last.nbytes == path.stat().st_size
    found = describe(path)
    assert found["types"]["q5_1"] == {"tensors": 1, "parameters": 288, "bytes": 216}
    assert found["architecture"]["version"] is None


@pytest.mark.parametrize(
    ("att", "version"),
    [
        ({"time_decay": (64,)}, "4"),
        ({"time_decay": (2, 1, 1), "ln_x.weight": (64,)}, "5.0"),
        ({"time_decay": (2, 1), "ln_x.weight": (64,), "gate.weight": (64, 64)}, "5.1"),
        ({"time_decay": (2, 32, 1), "ln_x.weight": (64,), "gate.weight": (64, 64)}, "5.2"),
        ({"time_decay": (2, 32, 1), "time_maa_x": (64,)}, "6"),
        ({"r_k": (2, 32)}, "7"),
    ],
)
def test_ggml_versions(tmp_path: Path, att: dict[str, tuple[int, ...]], version: str) -> None:
    path = ggml(tmp_path / "x.bin", *(ggml_tensor(f"blocks.0.att.{name}", 0, shape) for name, shape in att.items()))
    assert describe(path)["architecture"]["version"] == version


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ((0x67676D66, 102, 3, 64, 1, 0), "version is 102"),
        ((0x67676D66, 101, 0, 64, 1, 0), "make no model"),
        ((0x67676D66, 101, 3, -64, 1, 0), "make no model"),
        ((0x67676D66, 101, 3, 64, 1, 4), "data type 4"),
        ((0x67676D66, 100, 3, 64, 1, 8), "convert it again"),
        ((0x67676D66, 101, 4, 64, 1, 0), "emb.weight is [3, 64]"),
    ],
)
def test_ggml_headers(tmp_path: Path, header: tuple[int, ...], words: str) -> None:
    refused(ggml(tmp_path / "x.bin", ggml_tensor("emb.weight", 0, (3, 64)), header=header), words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([ggml_tensor("a", 0, (2,)), ggml_tensor("a", 0, (2,))], "two tensors"),
        ([ggml_tensor("a", 0, (2**30, 2**30), 4)], "cut short"),
        ([ggml_tensor("a", 0, (-1, -1), 4)], "dims"),
        ([ggml_tensor("a", 0, (0,), 4)], "dims"),
        ([ggml_tensor("a", 2, (2, 33), 40)], "blocks of 32"),
        ([ggml_tensor("a", 0, (1,) * 5, 4)], "5 dims"),
        ([ggml_tensor("", 0, (1,))], "key of 0 bytes"),
        ([ggml_tensor("a\x1b", 0, (1,))], "dims"),
        ([struct.pack("<4i", 1, 1, 5, 1) + b"a"], "data type 5"),
        ([struct.pack("<4i", 1, 2**30, 0, 1) + b"a"], "key of"),
        ([struct.pack("<4i", 1, 1, 0, 1) + b"\xff" + bytes(4)], "not UTF-8"),
    ],
)
def test_ggml_tensors_that_lie(tmp_path: Path, tensors: list[bytes], words: str) -> None:
    refused(ggml(tmp_path / "x.bin", *tensors), words)


@pytest.mark.parametrize(("name", "layers"), [("4v0-660K", 4), ("5v2-730K", 12), ("7v0-834K", 12)])
def test_ggml_fixtures(fixtures: Path, name: str, layers: int) -> None:
    found = describe(fixtures / f"tiny-rwkv-{name}-FP32.bin")
    assert found["architecture"]["n_layer"] == layers
    assert found["architecture"]["version"] == {"4": "4", "5": "5.2", "7": "7"}[name[0]]
    assert list(found["types"]) == ["f32"]
    names = [item["name"] for item in found["tensors"]]
    assert names[0] == "emb.weight"
    assert names[-1] == "head.weight"


# ---- GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    path: Path,
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(128),
    start: bytes = b"GGUF\3\0\0\0",
    counts: tuple[int, int] | None = None,
) -> Path:
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("rwkv7")] if pairs is None else pairs
    tensors = [tensor("a", (8, 4), 0, 0)] if tensors is None else tensors
    body = start + struct.pack("<QQ", *(counts or (len(tensors), len(pairs)))) + b"".join(pairs + tensors)
    path.write_bytes(body + bytes(-len(body) % 32) + data)
    return path


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def array(key: str, kind: int, length: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, length) + body


def test_gguf(tmp_path: Path) -> None:
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("rwkv7"),
        text("rwkv7.block_count") + struct.pack("<II", 4, 12),
        text("rwkv7.eps") + struct.pack("<If", 6, float("nan")),
        text("flag") + struct.pack("<I?", 7, True),
        array("tokens", 8, 9, b"".join(text(f"t{i}") for i in range(9))),
        array("scores", 6, 3, struct.pack("<3f", 1, 2, 3)),
        array("ids", 10, 30_000, bytes(240_000)),
        text("after") + struct.pack("<Iq", 11, -5),
    ]
    path = gguf(tmp_path / "x.gguf", pairs, [tensor("a", (8, 2), 0, 0), tensor("b", (32, 1, 2), 8, 64)], bytes(132))
    found = describe(path)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["architecture"] == {"name": "rwkv7", "version": "7", "block_count": 12, "eps": "nan"}
    assert found["metadata"]["tokens"] == {"length": 9, "first": [f"t{i}" for i in range(8)]}
    assert found["metadata"]["scores"] == [1.0, 2.0, 3.0]
    assert found["metadata"]["ids"]["length"] == 30_000
    assert found["metadata"]["after"] == -5
    assert found["tensors"] == [
        {"name": "a", "dtype": "f32", "shape": [2, 8], "bytes": 64},
        {"name": "b", "dtype": "q8_0", "shape": [2, 1, 32], "bytes": 68},
    ]
    index = read_gguf_index(path)
    assert index.tensors["b"].offset + 68 == path.stat().st_size


def pair(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


BROKEN_GGUF: list[tuple[dict[str, object], str]] = [
    ({"start": b"GGUF\1\0\0\0"}, "version is 1"),
    ({"start": b"GGUF\0\0\0\3"}, "version is"),
    ({"counts": (2**63, 0)}, "claims"),
    ({"counts": (0, 2**63)}, "claims"),
    ({"counts": (500_000, 1)}, "broken GGUF"),
    ({"pairs": [pair("a", 12, b"12345678")], "tensors": [tensor("a", (8, 4), 0, 64)]}, "outside"),
    ({"pairs": [pair("a", 13, b"")]}, "unknown type 13"),
    ({"pairs": [pair("a", 4, b"1234"), pair("a", 4, b"1234")]}, "stands twice"),
    ({"pairs": [pair("a", 8, struct.pack("<Q", 2**62))]}, "a text of"),
    ({"pairs": [array("a", 8, 2**62, b"")]}, "broken GGUF"),
    ({"pairs": [array("a", 4, 2**62, b"")]}, "cut short"),
    ({"pairs": [array("a", 9, 1, b"")]}, "an array of the type 9"),
    ({"pairs": [pair("general.alignment", 4, struct.pack("<I", 0))]}, "alignment"),
    ({"pairs": [pair("general.alignment", 4, struct.pack("<I", 33))]}, "alignment"),
    ({"pairs": [pair("general.alignment", 8, text("x"))]}, "alignment"),
    ({"tensors": [tensor("a", (8, 4), 0, 0), tensor("a", (8, 4), 0, 0)]}, "two tensors"),
    ({"tensors": [tensor("a", (8, 4), 0, 0), tensor("b", (8, 4), 0, 32)], "data": bytes(256)}, "overlaps"),
    ({"tensors": [tensor("a", (8, 4), 0, 5)], "data": bytes(256)}, "not aligned"),
    ({"tensors": [tensor("a", (2**62, 2**62), 0, 0)]}, "outside"),
    ({"tensors": [tensor("a", (8, 4), 4, 0)]}, "unknown type 4"),
    ({"tensors": [tensor("a", (33, 4), 2, 0)]}, "blocks of 32"),
    ({"tensors": [tensor("a", (), 0, 0)]}, "0 dims"),
]


@pytest.mark.parametrize(("parts", "words"), BROKEN_GGUF)
def test_gguf_files_that_lie(tmp_path: Path, parts: dict[str, object], words: str) -> None:
    refused(gguf(tmp_path / "x.gguf", **parts), words)  # type: ignore[arg-type]


def test_gguf_as_its_own_package_writes_it(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = package.GGUFWriter(tmp_path / "x.gguf", "rwkv6")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", numpy.ones((5, 64), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = describe(tmp_path / "x.gguf")
    assert found["architecture"]["block_count"] == 2
    assert found["tensors"] == [{"name": "token_embd.weight", "dtype": "f32", "shape": [5, 64], "bytes": 1280}]


# ---- damage


@pytest.fixture(params=["ggml", "gguf"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"small.{request.param}"
    if request.param == "gguf":
        return gguf(path)
    return ggml(path, ggml_tensor("emb.weight", 1, (3, 64)), ggml_tensor("b", 8, (2, 32)))


def test_every_truncation(small: Path) -> None:
    whole = small.read_bytes()
    first = 24 + 12 + 8 + 10 + 384  # a ggml file may end after any tensor; nothing in it says how many there are
    for length in range(len(whole)):
        os.truncate(small, length)
        if small.suffix == ".ggml" and length in (24, first):
            assert len(describe(small)["tensors"]) == (length == first)
        else:
            refused(small)
        small.write_bytes(whole)


@FILES
@given(st.data())
def test_flipped_bytes(small: Path, data: st.DataObject) -> None:
    changed = flipped(small, data)
    try:
        found = describe(changed)
    except WorkerError as error:
        found = {"file": str(error)}
    assert "flipped" in found["file"]
