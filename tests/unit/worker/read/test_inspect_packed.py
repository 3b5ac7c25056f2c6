"""Descriptions of models that are one map of CBOR or msgpack, and of such that lie about themselves."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.prefab.layout import Prefab
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.compare import compare
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.packed.packed_file import read_packed_index
from rwkvflow.worker.read.packed.packed_source import AuthorTensor, of_package
from tests.helpers import checkpoints
from tests.helpers.flipped import flipped

cbor2 = pytest.importorskip("cbor2")
msgpack = pytest.importorskip("msgpack")
FILES = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
PREFABS = sorted(name for name in FORMATS if name.startswith("prefab"))


def prefab(path: Path, name: str = "prefab-f16", version: str = "7") -> Path:
    """A file as the format lays it out, with weights that are 0."""
    shapes = checkpoints.shapes(version, width=64, vocab=64)
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    layout = FORMATS[name].layout(architecture_of(tensors), tensors)  # type: ignore[attr-defined]
    content = bytearray(layout.size)
    for at, data in layout.literals:
        content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def model_of_fr(**changed: Any) -> dict[str, Any]:
    def tensor(kind: str, *shape: int) -> dict[str, Any]:
        size = math.prod(shape) * (2 if kind == "float16" else 4)
        return {"dtype": f"torch.{kind}", "data": bytes(size), "shape": list(shape)}

    weights = {"blocks.0.att.key.weight": tensor("float16", 8, 8), "blocks.0.att.time_decay": tensor("float32", 8)}
    embedding = [tensor("float16", 8) for _ in range(5)]
    numbers = {"n_layer": 1, "n_embd": 8, "n_att": 8, "n_ffn": 32}
    return {"embd_weights": embedding, "weights": weights, "version": "4", **numbers, **changed}


def fr(path: Path, **changed: Any) -> Path:
    path.write_bytes(msgpack.packb(model_of_fr(**changed)))
    return path


@pytest.mark.parametrize("version", ["4", "5.1", "5.2", "6", "7"])
@pytest.mark.parametrize("name", PREFABS)
def test_prefabs_as_we_write_them(tmp_path: Path, name: str, version: str) -> None:
    if version not in FORMATS[name].versions:
        pytest.skip("the format cannot hold this version")
    item = FORMATS[name]
    assert isinstance(item, Prefab)
    found = describe(prefab(tmp_path / "m.prefab", name, version))
    assert found["format"] == "prefab"
    assert found["problem"] is None
    assert found["architecture"]["version"] == version[0]
    assert (found["architecture"]["n_embd"], found["architecture"]["n_vocab"]) == (64, 64)
    kinds = {"": "f16", "int8": "int8", "nf4": "nf4"}
    keys = [tensor for tensor in found["tensors"] if tensor["name"].endswith("ffn.w_k")]
    assert {tensor["dtype"] for tensor in keys} == {kinds[item.blocks]}
    assert {tuple(tensor["shape"]) for tensor in keys} == {(found["architecture"]["n_ffn"], 64)}
    held = sum(entry["bytes"] for entry in found["types"].values())
    assert 0 < found["bytes"] - held < 100 * len(found["tensors"]) + 1000, "what is not data is names and sizes"


def test_an_fr_as_its_own_package_writes_it(tmp_path: Path) -> None:
    found = describe(fr(tmp_path / "m.fr"))
    assert found["format"] == "faster-rwkv"
    assert found["architecture"] == {"version": "4", "n_vocab": 5, "n_layer": 1, "n_embd": 8, "n_att": 8, "n_ffn": 32}
    assert found["tensors"] == [
        {"name": "emb.weight", "dtype": "f16", "shape": [5, 8], "bytes": 80},
        {"name": "blocks.0.att.key.weight", "dtype": "f16", "shape": [8, 8], "bytes": 128},
        {"name": "blocks.0.att.time_decay", "dtype": "f32", "shape": [8], "bytes": 32},
    ]


@pytest.mark.parametrize(
    "value",
    [
        *(0, 23, 24, 255, 256, 65535, 65536, 1 << 32, (1 << 64) - 1, -1, -24, -25, -129, -(1 << 31)),
        *(1.5, True, None, "é" * 300, [], list(range(70)), {str(at): at for at in range(300)}),
        {"a": [1, {"b": False}], "c": []},
    ],
)
def test_values_as_other_packages_write_them(tmp_path: Path, value: Any) -> None:
    from rwkvflow.worker.read.packed import values
    from rwkvflow.worker.read.rawfile import RawFile

    for encoded, head in ((cbor2.dumps(value), values.cbor), (msgpack.packb(value), values.msgpack)):
        (tmp_path / "value").write_bytes(encoded)
        with RawFile(tmp_path / "value") as file:
            assert values.Packed(file).whole(head) == value


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 4, "embd_weights": []}, "not as a faster-rwkv is"),
        ({"weights": [1]}, "not as a faster-rwkv is"),
        ({"weights": {"a": {"dtype": "torch.float16", "data": "text", "shape": [1]}}}, "not as a faster-rwkv is"),
        ({"weights": {"a": {"dtype": "torch.float16", "data": b"", "shape": [-1]}}}, "-1 is no size"),
        ({"weights": {7: 7}}, "a key is no text"),
        ({"deep": [[[[[[[[[[[[[[[]]]]]]]]]]]]]]]}, "too deeply"),
        ({"version": "x" * 5000}, "a text is too long"),
    ],
)
def test_an_fr_that_lies(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkerError, match=words):
        describe(fr(tmp_path / "m.fr", **changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights": {"a": {"dtype": "torch.float16", "data": bytes(6), "shape": [2, 2]}}}, "a has not the data of"),
        ({"weights": {"a": {"dtype": "torch.int8", "data": bytes(4), "shape": [4]}}}, "a has not the data of"),
        ({"weights": {"x.att.key.weight": model_of_fr()["embd_weights"][0]}}, ""),
        ({"weights": {"x.att.output.weight": model_of_fr()["embd_weights"][0]}}, "not as a faster-rwkv is"),
        ({"weights": {"x.9999999999.att.output.weight": model_of_fr()["embd_weights"][0]}}, "no name of a tensor"),
        (
            {"embd_weights": [*model_of_fr()["embd_weights"], {**model_of_fr()["embd_weights"][0], "shape": [4, 2]}]},
            "rows",
        ),
    ],
)
def test_an_fr_that_lies_about_its_data_is_not_compared(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    path = fr(tmp_path / "m.fr", **changed)
    if not words:
        assert {item.kind for item in compare(path, path)} == {"equal"}
        return
    with pytest.raises(WorkerError, match=words):
        list(compare(path, path))


def author(dtype: str, *shape: int) -> AuthorTensor:
    def rows(start: int, count: int | None) -> Any:
        return np.zeros(shape, "<f4")[start : None if count is None else start + count]

    return AuthorTensor(dtype, shape, rows)


@pytest.mark.parametrize(
    ("more", "halved_every", "words"),
    [
        ({}, "six", "'six' is no number of layers"),
        ({}, 10**9, "is no number of layers"),
        ({"att.output.weight": author("f16", 4, 4)}, 6, "not as the rwkv package writes it"),
        ({"blocks.1.ffn.key.weight": author("u8", 4, 4)}, 6, "blocks.1.ffn.key.weight_mx"),
        (
            {"w": author("u8", 4, 6), **{f"w_{part}": author("f16", 4) for part in ("mx", "rx", "my", "ry")}},
            6,
            "scales of another size",
        ),
        ({"w": author("u8", 4), **{f"w_{part}": author("f16", 4) for part in ("mx", "rx", "my", "ry")}}, 6, "scales"),
    ],
)
def test_a_pth_that_lies_about_who_made_it(more: dict[str, AuthorTensor], halved_every: object, words: str) -> None:
    with pytest.raises(WorkerError, match=words):
        of_package("m.pth", {"blocks.0.att.time_decay": author("f32", 8), **more}, halved_every)


def test_more_values_than_there_are_bytes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.fr"
    path.write_bytes(b"\x81\xacembd_weights\xdd\xff\xff\xff\xff")
    with pytest.raises(WorkerError, match="too many values"):
        describe(path)
    path.write_bytes(b"\x81\xacembd_weights\xc6\xff\xff\xff\xff")
    with pytest.raises(WorkerError, match="cut short"):
        describe(path)
    path.write_bytes(fr(path).read_bytes() + b"\0")
    with pytest.raises(WorkerError, match="bytes follow its end"):
        describe(path)
    path.write_bytes(b"neither")
    with pytest.raises(WorkerError, match=r"neither a \.prefab nor a \.fr"):
        read_packed_index(path)


@pytest.fixture(params=["prefab", "fr"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"small.{request.param}"
    return prefab(path) if request.param == "prefab" else fr(path)


def test_every_truncation(small: Path) -> None:
    whole = small.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 500)):
        small.write_bytes(whole[:length])
        with pytest.raises(WorkerError):
            describe(small)


@FILES
@given(st.data())
def test_flipped_bytes(small: Path, data: st.DataObject) -> None:
    changed = flipped(small, data)
    try:
        found = describe(changed)
    except WorkerError as error:
        found = {"file": str(error)}
    assert "flipped" in found["file"]


@FILES
@given(st.data())
def test_flipped_bytes_are_compared_or_refused(small: Path, data: st.DataObject) -> None:
    changed = flipped(small, data)
    with contextlib.suppress(WorkerError):
        assert {item.kind for item in compare(small, changed)} <= {"equal", "values", "shape", "first", "second"}
