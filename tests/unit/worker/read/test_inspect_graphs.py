"""Descriptions of ONNX and ncnn models, and of such that lie about themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import FolderFormat
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.write.layout import Layout
from rwkvflow.worker.write.onnx_writer import FLOAT, Tensor, model
from tests.helpers import checkpoints

NAMES = [f"{family}-{kind}" for family in ("onnx", "ncnn") for kind in ("f32", "f16")]
MODELS = {"onnx": ("model.onnx", "model.onnx.data"), "ncnn": ("model.param", "model.bin")}
FILES = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def layouts(name: str, version: str) -> dict[str, Layout]:
    shapes = checkpoints.shapes(version, width=64, vocab=50)
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    item = FORMATS[name]
    assert isinstance(item, FolderFormat)
    return dict(item.layouts(architecture_of(tensors), tensors))


def write(folder: Path, name: str, version: str = "7") -> Path:
    """A folder as the format lays it out, with weights that are 0."""
    folder.mkdir(exist_ok=True)
    for file, layout in layouts(name, version).items():
        content = bytearray(layout.size)
        for at, data in layout.literals:
            content[at : at + len(data)] = data
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("graphs")
    return {name: write(root / name, name) for name in NAMES}


def refused(path: Path, *words: str) -> None:
    with pytest.raises(WorkerError) as error:
        describe(path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("version", sorted(VERSIONS))
@pytest.mark.parametrize("name", NAMES)
def test_what_we_write(tmp_path: Path, name: str, version: str) -> None:
    if version not in FORMATS[name].versions:
        pytest.skip("the format cannot hold this version")
    folder, (family, kind) = write(tmp_path / "x", name, version), name.split("-")
    found = describe(folder / MODELS[family][0])
    assert found == describe(folder)
    assert found["format"] == family
    assert found["files"] == list(MODELS[family])
    assert found["bytes"] == sum((folder / one).stat().st_size for one in MODELS[family])
    assert found["problem"] is None
    assert found["architecture"]["version"] == {"5.0": "5"}.get(version, version)
    held = sum(entry["bytes"] for entry in found["types"].values())
    data = (folder / MODELS[family][1]).stat().st_size
    small = 4096 * len(found["tensors"])  # what aligns weights, and constants inside the graph
    assert abs(held - data) < small
    matrices = sum(tensor["bytes"] for tensor in found["tensors"] if tensor["dtype"] == kind)
    assert matrices >= 2 * 50 * 64 * (4 if kind == "f32" else 2)  # the embedding and the head are among them
    assert "Sigmoid" in found["metadata"]["operators" if family == "onnx" else "layers"]


def test_an_onnx_is_known_without_its_name_and_without_a_config(tmp_path: Path, made: dict[str, Path]) -> None:
    shutil.copy(made["onnx-f16"] / "model.onnx", tmp_path / "x.bin")
    shutil.copy(made["onnx-f16"] / "model.onnx.data", tmp_path)
    found = describe(tmp_path / "x.bin")
    assert found["format"] == "onnx"
    assert found["architecture"] is None
    assert ".config" in found["problem"]
    assert found["metadata"]["inputs"].startswith("input_id state_0_0 ")


@pytest.mark.parametrize("family", MODELS)
def test_weights_that_are_missing_or_cut_short(tmp_path: Path, made: dict[str, Path], family: str) -> None:
    model, weights = MODELS[family]
    shutil.copytree(made[f"{family}-f32"], tmp_path / "x")
    data = (tmp_path / "x" / weights).read_bytes()
    (tmp_path / "x" / weights).write_bytes(data[:-4])
    refused(tmp_path / "x", weights, "cut short")
    (tmp_path / "x" / weights).unlink()
    refused(tmp_path / "x", model, weights, "missing")


def test_weights_of_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    tensor = Tensor("w", FLOAT, (4,), location="n" * 300, size=16)
    (tmp_path / "x.onnx").write_bytes(model([], [tensor], [], [], "test"))
    refused(tmp_path / "x.onnx", "missing")


def test_weights_of_another_model(tmp_path: Path, made: dict[str, Path]) -> None:
    shutil.copytree(made["ncnn-f32"], tmp_path / "x")
    with (tmp_path / "x/model.bin").open("ab") as file:
        file.write(bytes(4))
    refused(tmp_path / "x", "model.bin", "of one model")


def test_a_layer_that_is_not_known_is_said(tmp_path: Path, made: dict[str, Path]) -> None:
    shutil.copytree(made["ncnn-f32"], tmp_path / "x")
    param = tmp_path / "x/model.param"
    param.write_text(param.read_text().replace("Sigmoid", "Attention", 1))
    found = describe(param)
    assert found["problem"] == "which weights Attention has is not known here"
    assert found["tensors"] == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"7767517\n", b"7767517\n9", ("model.param", "9")),
        (b"Embed", b"Embed x y z", ("model.param, line ", "not a layer")),
        (b" 0=64 1=50 ", b" 0=-64 1=50 ", ("Embed", "negative")),
        (b" 0=64 1=50 ", b" 0=64 1=fifty ", ("Embed", "no number")),
    ],
)
def test_a_param_that_is_none(
    tmp_path: Path, made: dict[str, Path], old: bytes, new: bytes, words: tuple[str, ...]
) -> None:
    shutil.copytree(made["ncnn-f32"], tmp_path / "x")
    param = tmp_path / "x/model.param"
    content = param.read_bytes()
    assert old in content
    param.write_bytes(content.replace(old, new, 1))
    refused(param, *words)


@pytest.mark.parametrize("location", ["../model.onnx.d", "/etc/passwd", "."])
def test_weights_that_are_not_beside_it(tmp_path: Path, made: dict[str, Path], location: str) -> None:
    shutil.copytree(made["onnx-f32"], tmp_path / "x")
    model = tmp_path / "x/model.onnx"
    name = b"model.onnx.data"
    data = model.read_bytes()
    at = data.index(name)
    model.write_bytes(data[:at] + location.encode().ljust(len(name), b"/") + data[at + len(name) :])
    refused(model, "not a file beside it")


@FILES
@given(data=st.data(), family=st.sampled_from(list(MODELS)))
def test_what_is_broken_is_refused_by_name(
    tmp_path: Path, made: dict[str, Path], data: st.DataObject, family: str
) -> None:
    model, weights = MODELS[family]
    folder = tmp_path / "fuzzed"
    folder.mkdir(exist_ok=True)
    shutil.copy(made[f"{family}-f16"] / weights, folder)
    content = bytearray((made[f"{family}-f16"] / model).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    (folder / model).write_bytes(content[:cut] if data.draw(st.booleans()) else content)
    problem = ""
    try:
        describe(folder / model)
    except WorkerError as error:
        problem = str(error)
    assert not problem or model in problem or weights in problem
