"""ncnn-*: PyPI's ncnn runs folders of random checkpoints, and its logits are the reference's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.smoke import judge
from tests.engine import encoder
from tests.engine.artifacts import ask, expected, make

pytest.importorskip("ncnn")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.mark.parametrize("version", VERSIONS)
def test_ncnn_agrees_with_the_reference(version: str, engine: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "f32"):
        names = ("ncnn-f32", "ncnn-f16")
        source, made = make(tmp_path / dtype, version, dtype, engine, *names, layers=3)
        wanted = expected(source)
        for name, path in zip(names, made, strict=True):
            figures = judge.compare(wanted, answers := ask(name, path, source, truth=wanted))
            assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
            assert figures.logits < (1e-5 if name == "ncnn-f32" else 0.01)
            assert answers.continuations == wanted.continuations
            assert answers.runtime
            assert figures.divergence is not None
            assert figures.divergence < (1e-9 if name.endswith("f32") else 1e-4)
            assert answers.pace is not None
            assert (answers.pace.threads, answers.pace.tokens) == (1, 20 - 8)
            assert (figures.logits > 1e-5) == (dtype == "f32" and name == "ncnn-f16")  # F16 holds these bf16 values


@pytest.mark.parametrize("heads", [1, 3, 4, 8, 16])
def test_every_packing_of_heads(heads: int, engine: Path, tmp_path: Path) -> None:
    """ncnn packs 4, 8 or 16 heads together where their number is a multiple; 18 is no multiple of anything."""
    for version in ("5.1", "5.2", "6", "7"):
        sizes = {"layers": 1, "width": heads * 18, "head_size": 18, "vocab": 95, "ffn": 70}
        source, (path,) = make(tmp_path / version, version, "f16", engine, "ncnn-f16", **sizes)
        assert judge.compare(expected(source), ask("ncnn-f16", path, source)).logits < 2e-5


def test_odd_numbers_of_halves(engine: Path, tmp_path: Path) -> None:
    """F16 weights of an odd number are padded to four bytes."""
    source, (path,) = make(tmp_path / "a", "4", "f16", engine, "ncnn-f16", layers=2, width=25, vocab=95, ffn=35)
    assert judge.compare(expected(source), ask("ncnn-f16", path, source)).logits < 1e-5


def test_the_same_bytes_whatever_the_pieces(engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", "6", "bf16", engine, "ncnn-f16")
    again = tmp_path / "again"
    (outcome,) = convert(source, engine, [ConversionJob("x", "ncnn-f16", again)], piece=512, threads=1)
    assert outcome.written is not None
    names = sorted(file.name for file in path.iterdir())
    assert names == ["model.bin", "model.config", "model.param"]
    assert [(again / name).read_bytes() for name in names] == [(path / name).read_bytes() for name in names]


def test_damage_is_told(engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", "5.2", "f32", engine, "ncnn-f32")
    param, weights = path / "model.param", path / "model.bin"
    text, data = param.read_text(), weights.read_bytes()
    param.write_text(text.replace("GroupNorm", "GroupNurm"))
    with pytest.raises(WorkerError, match=r"^ncnn cannot load model.param"):
        ask("ncnn-f32", path, source)
    param.write_text(text.replace("state_1_1", "other_1_1"))
    with pytest.raises(WorkerError, match=r"^ncnn knows no blob state_1_1"):
        ask("ncnn-f32", path, source)
    param.write_text(text)
    weights.write_bytes(data[:-5000])
    with pytest.raises(WorkerError, match=r"^ncnn cannot load model.bin"):
        ask("ncnn-f32", path, source)


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_another_epsilon_is_in_the_graph(version: str, engine: Path, tmp_path: Path) -> None:
    source, (path,) = make(tmp_path / "a", version, "f32", engine, "ncnn-f32", eps=0.1)
    answers = ask("ncnn-f32", path, source, 0.1)
    assert judge.compare(expected(source, 0.1), answers).logits < 1e-5
    assert judge.compare(expected(source), answers).logits > 1e-3
