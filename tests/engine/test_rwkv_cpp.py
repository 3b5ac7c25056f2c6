"""rwkv.cpp itself runs our files: the card's command as printed, the reference's logits, what is infinite there.

In no package index: RWKVFLOW_RWKV_CPP names a clone of it, built as the card says. Skipped where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import answer, one_by_one
from rwkvflow.worker.formats.runtimes import BY_NAME, MEASURED, infinite_in
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Questions
from tests.engine import librwkv
from tests.engine.test_card_commands import run, told
from tests.helpers import checkpoints

CLONE = os.environ.get("RWKVFLOW_RWKV_CPP")
pytestmark = pytest.mark.skipif(CLONE is None, reason="RWKVFLOW_RWKV_CPP names no clone of rwkv.cpp")
ASKED = Questions((1, 2, 3, 4, 5, 6, 7, 8), 8, (), 0)
EPSILON = 1e-5  # of rwkv.cpp's head group norm in versions 5
TYPES = ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config)


@pytest.fixture(scope="session")
def package() -> Any:
    sys.path.insert(0, f"{CLONE}/python")
    from rwkv_cpp import rwkv_cpp_model, rwkv_cpp_shared_library  # type: ignore[import-not-found, unused-ignore]

    library = rwkv_cpp_shared_library.load_rwkv_shared_library()
    return lambda path: rwkv_cpp_model.RWKVModel(library, str(path), gpu_layers_count=0)


def made(path: Path, version: str, by: float, name: str, built: Path) -> Path:
    """An artifact of a model whose k² of the feed-forward is by² as large, and its logits what they are."""
    entries = []
    for entry in checkpoints.entries(version, "f32", 3, layers=2, width=256, vocab=96):
        factor = {"ffn.key.weight": by, "ffn.value.weight": by**-2}.get(".".join(entry.name.split(".")[2:]), 1.0)
        values = np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape)
        entries.append(checkpoints.array_entry(entry.name, values * np.float32(factor)))
    checkpoints.write_pth(path, entries)
    artifact = path.with_suffix(".bin")
    artifact.unlink(missing_ok=True)
    (outcome,) = convert(path, built / "librwkv.so", [ConversionJob("x", name, artifact)])
    assert outcome.failure is None
    return artifact


def answers_of(package: Any, path: Path) -> Any:
    model = package(path)

    def step(token: int, state: Any) -> tuple[Any, Any]:
        logits, state = model.eval(token, state, use_numpy=True)
        return np.array(logits), state

    try:
        return one_by_one(step, ASKED, None)
    finally:
        model.free()


@pytest.mark.parametrize("version", ["4", "5.0", "5.2", "6", "7"])
def test_it_comes_to_the_references_logits(version: str, package: Any, built: Path, tmp_path: Path) -> None:
    assert BY_NAME["rwkv.cpp"].runs[version] == MEASURED
    for kind in TYPES:
        name = f"ggml-{kind}"
        path = made(tmp_path / "m.pth", version, 1.0, name, built)
        with open_checkpoint(tmp_path / "m.pth") as checkpoint:
            truth = answer(Reference(checkpoint, EPSILON if version[0] == "5" else None), ASKED)
        figures = judge.compare(truth, answers_of(package, path))
        # It quantizes activations as well, where weights are.
        assert figures.logits <= FORMATS[name].limits.logits * (2 if kind != "f32" else 1), (name, figures)


def test_version_5_1_is_another_model_there(package: Any, built: Path, tmp_path: Path) -> None:
    path = made(tmp_path / "m.pth", "5.1", 1.0, "ggml-f32", built)
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        truth = answer(Reference(checkpoint, EPSILON), ASKED)
    assert judge.compare(truth, answers_of(package, path)).logits > 1


@pytest.mark.parametrize("version", ["4", "5.0", "5.2", "6", "7"])
@pytest.mark.parametrize("by", [1.0, 120.0, 3000.0])
def test_what_is_infinite_in_it_is_foretold(version: str, by: float, package: Any, built: Path, tmp_path: Path) -> None:
    for kind in ("f32", "f16", "q5_0", "q5_1", "q8_0", "q4_k"):
        name = f"ggml-{kind}"
        path = made(tmp_path / "m.pth", version, by, name, built)
        with open_checkpoint(tmp_path / "m.pth") as checkpoint:
            forward = Reference(checkpoint)
            answer(forward, ASKED)
        foretold = infinite_in(FORMATS[name], forward.architecture.n_ffn, forward.peaks.square, forward.peaks.block)
        assert (judge.finite(answers_of(package, path)) is not None) == ("rwkv.cpp" in foretold), name


def test_the_command_of_the_card_runs_as_printed(built: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    release = tmp_path / "release"
    (release / "m").mkdir(parents=True)
    (release / "rwkv.cpp").symlink_to(str(CLONE))
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=2, width=64, vocab=65536)
    (outcome,) = convert(source, built / "librwkv.so", [ConversionJob("x", "ggml-q5_1", release / "m/m.bin")])
    assert outcome.failure is None
    ((_, (_, command)),) = told("ggml-q5_1", "7", "m/m.bin", ("m/m.bin",)).commands
    assert command.startswith("python rwkv.cpp/python/")
    assert "Generation 2" in run(command, release)


def test_its_setup_is_as_the_clone_has_it() -> None:
    (_, clone, packages) = told("ggml-q5_1", "7", "m/m.bin", ("m/m.bin",)).setup
    assert clone.endswith("(cd rwkv.cpp && cmake . && cmake --build .)")
    assert packages == "pip install -r rwkv.cpp/python/requirements.txt"
    assert (Path(str(CLONE)) / "python/requirements.txt").is_file()
    assert shutil.which("cmake")
    assert subprocess.run(["git", "--version"], check=False, capture_output=True).returncode == 0
