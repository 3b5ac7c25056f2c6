"""What convert wrote is opened before it is done, and what a format cannot hold is told before it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.worker.conversion.jobs import ConversionJob, ConversionOutcome
from rwkvflow.worker.conversion.written import check_written, opened
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.ggml.layout import MAX_KEY, MOST_DIMS, Ggml
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.write.layout import Written
from tests.helpers import checkpoints
from tests.helpers.folders import folder_of


def outcome(path: Path, name: str) -> ConversionOutcome:
    size = path.stat().st_size if path.is_file() else 0
    return ConversionOutcome(ConversionJob("x", name, path), Written(size, None))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_whole_file_stays_and_a_broken_one_is_a_failure(tmp_path: Path, suffix: str) -> None:
    path = checkpoints.make(tmp_path / f"m{suffix}", "7", layers=1, width=64, vocab=64)
    found = outcome(path, "safetensors")
    check_written(found)
    assert found.failure is None
    assert opened(path) == len(checkpoints.shapes("7", layers=1, width=64, vocab=64))
    path.write_bytes(path.read_bytes()[:-100])
    check_written(found)
    assert found.failure is not None
    assert found.failure.startswith("safetensors: what was written cannot be read: ")
    assert found.written is None
    assert not path.exists()


def test_a_folder_is_opened_too(tmp_path: Path) -> None:
    folder = folder_of(checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=64), tmp_path / "hf", 60_000)
    found = outcome(folder, "transformers")
    check_written(found)
    assert found.failure is None
    next(folder.glob("*.safetensors")).unlink()
    check_written(found)
    assert found.failure is not None
    assert not folder.exists()


def test_only_families_without_a_reader_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"nothing")
    for name in FORMATS:
        found = outcome(path, name)
        check_written(found)
        assert (found.failure is None) == (not FORMATS[name].is_read_here)
        path.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("step", ()),
        ("num_batches_tracked", (0,)),
        ("empty", (4, 0)),
        ("five", (1, 2, 3, 4, 5)),
        ("four", (1,) * (MOST_DIMS + 1)),
        ("wide", (2**31,)),
        ("n" * 990, (4,)),
        ("ü" * (MAX_KEY // 2 + 1), (4,)),
    ],
)
@pytest.mark.parametrize("kind", ["ggml-f32", "ggml-q5_1"])
def test_a_bin_is_not_begun_with_what_no_reader_of_it_takes(kind: str, name: str, shape: tuple[int, ...]) -> None:
    shapes = checkpoints.shapes("4", layers=1, width=64, vocab=64)
    tensors = {key: TensorInfo(key, "bf16", value) for key, value in shapes.items()}
    architecture = architecture_of(tensors)
    item = FORMATS[kind]
    assert isinstance(item, Ggml)
    item.layout(architecture, {**tensors, "k" * MAX_KEY: TensorInfo("k" * MAX_KEY, "bf16", (2,) * MOST_DIMS)})
    with pytest.raises(WorkerError, match=f"{kind} cannot hold"):
        item.layout(architecture, {**tensors, name: TensorInfo(name, "bf16", shape)})
