"""onnx-*: folders of random checkpoints pass onnx.checker, and onnxruntime's logits are the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.smoke import judge
from tests.engine import encoder
from tests.engine.artifacts import ask, expected, make
from tests.helpers import checkpoints

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.mark.parametrize("version", VERSIONS)
def test_onnxruntime_agrees_with_the_reference(version: str, engine: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "f32"):
        names = ("onnx-f32", "onnx-f16")
        source, made = make(tmp_path / dtype, version, dtype, engine, *names, layers=3)
        wanted = expected(source)
        for name, path in zip(names, made, strict=True):
            figures = judge.compare(wanted, answers := ask(name, path, source, truth=wanted))
            assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
            assert figures.logits < (1e-5 if name == "onnx-f32" else 0.01)
            assert answers.continuations == wanted.continuations
            assert answers.runtime
            assert figures.divergence is not None
            assert figures.divergence < (1e-9 if name.endswith("f32") else 1e-4)
            assert answers.pace is not None
            assert (answers.pace.threads, answers.pace.tokens) == (1, 20 - 8)
            exact = name == "onnx-f32"
            assert (figures.logits > 1e-5) == (dtype == "f32" and not exact)  # F16 holds these bf16 values


def test_sizes_that_are_not_the_usual(engine: Path, tmp_path: Path) -> None:
    """A head size of 32, one layer, odd widths: nothing is taken from a table."""
    for version, sizes in (
        ("7", {"layers": 1, "width": 96, "head_size": 32, "vocab": 95, "ffn": 100}),
        ("6", {"layers": 1, "width": 96, "head_size": 32, "vocab": 95, "ffn": 100}),
        ("4", {"layers": 1, "width": 50, "vocab": 95, "ffn": 70}),
    ):
        source, (path,) = make(tmp_path / version, version, "f16", engine, "onnx-f16", **sizes)
        assert judge.compare(expected(source), ask("onnx-f16", path, source)).logits < 1e-5


def test_layer_0_with_parameters_that_it_does_not_use(engine: Path, tmp_path: Path) -> None:
    """Some files of version 7 have v0, v1 and v2 in layer 0, which has no layer before it."""
    entries = checkpoints.entries("7", "f32", layers=2, width=128, vocab=96)
    extra = [
        checkpoints.array_entry(entry.name.replace("blocks.1.", "blocks.0."), np.ones(entry.shape, np.float32))
        for entry in entries
        if entry.name in ("blocks.1.att.v0", "blocks.1.att.v1", "blocks.1.att.v2")
    ]
    source = tmp_path / "m.pth"
    checkpoints.write_pth(source, [*entries, *extra])
    (outcome,) = convert(source, engine, [ConversionJob("x", "onnx-f32", tmp_path / "out")])
    assert outcome.failure is None
    assert judge.compare(expected(source), ask("onnx-f32", tmp_path / "out", source)).logits < 1e-5


def test_the_same_bytes_whatever_the_pieces(engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", "6", "bf16", engine, "onnx-f16")
    again = tmp_path / "again"
    (outcome,) = convert(source, engine, [ConversionJob("x", "onnx-f16", again)], piece=512, threads=1)
    assert outcome.written is not None
    assert outcome.written.sha256 is None
    names = sorted(file.name for file in path.iterdir())
    assert names == ["model.onnx", "model.onnx.config", "model.onnx.data"]
    assert [(again / name).read_bytes() for name in names] == [(path / name).read_bytes() for name in names]
    assert outcome.written.size == sum(file.stat().st_size for file in again.iterdir())


def test_a_file_with_another_name_elsewhere_is_run_as_well(engine: Path, tmp_path: Path) -> None:
    """onnx refuses such files; a store whose owner keeps a copy of it by hard links has them."""
    source, (path,) = make(tmp_path / "a", "6", "f32", engine, "onnx-f32")
    (tmp_path / "other name").hardlink_to(path / "model.onnx.data")
    with pytest.raises(onnx.checker.ValidationError, match="hard"):
        onnx.checker.check_model(str(path / "model.onnx"))
    assert judge.compare(expected(source), ask("onnx-f32", path, source)).logits < 1e-5


def test_damage_is_told(engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", "4", "f32", engine, "onnx-f32")
    good = (path / "model.onnx").read_bytes()
    (path / "model.onnx").write_bytes(good.replace(b"Sigmoid", b"Sigmoit"))
    with pytest.raises(WorkerError, match=r"^onnx.checker refuses it: No Op registered for Sigmoit"):
        ask("onnx-f32", path, source)
    (path / "model.onnx").write_bytes(good)
    data = path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(WorkerError, match=r"^onnx"):
        ask("onnx-f32", path, source)
    data.unlink()
    with pytest.raises(WorkerError, match=r"^onnx.checker refuses it: .*model.onnx.data"):
        ask("onnx-f32", path, source)


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_another_epsilon_is_in_the_graph(version: str, engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", version, "f32", engine, "onnx-f32", eps=0.1)
    answers = ask("onnx-f32", path, source, 0.1)
    assert judge.compare(expected(source, 0.1), answers).logits < 1e-5
    assert judge.compare(expected(source), answers).logits > 1e-3
