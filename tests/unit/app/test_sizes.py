"""What `plan` says of sizes before anything is made is what is made, for every format, with all that a recipe adds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rwkvflow.app.pipeline import Prepared
from rwkvflow.app.sizes import sizes
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import LockedFile
from rwkvflow.documents.workflow import Workflow
from rwkvflow.lock import header
from rwkvflow.plan.matrix import expand
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.stages.convert import job_of
from rwkvflow.worker.conversion.jobs import format_of
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.imatrix import Imatrix
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.tasks.convert import job_from
from tests.helpers import checkpoints
from tests.unit.stages.test_llama_stages import lock_of

HOLD = [name for name, item in FORMATS.items() if "7" in item.versions]
RECIPE = """\
name: x
models: [{{name: tiny, source: {source}, tokenizer: bytes, imatrix: {{}}}}]
formats: [{formats}]
image: {{python: "3.11", torch: "2.13.0"}}
card: {{license: apache-2.0, language: [en, zh], base_model: [a/b]}}
"""


def prepared(source: str, formats: list[str], folder: Path) -> Prepared:
    recipe = recipe_from_text(RECIPE.format(source=source, formats=", ".join(formats)), "x.yaml", folder)
    pin = LockedFile(source=source, resolved=source, sha256="0" * 64, size=1)
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=folder / "x.yaml",
        workflow=Workflow.model_validate({"version": 1, "stages": {}}),
        workflow_path=folder / "workflow.yaml",
        lock=lock_of(recipe).model_copy(update={"models": {"tiny": pin}}),
        sandbox="host",
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )
    store = SimpleNamespace(path=lambda digest: None)
    return cast("Prepared", SimpleNamespace(blueprint=blueprint, store=store))


def made(item: Any, checkpoint: Path, path: Path) -> int:
    """Bytes of an artifact of zeros."""
    with open_checkpoint(checkpoint) as opened:
        architecture = architecture_of(opened.tensors)
        writer = item.open(path, architecture, item.held(architecture, opened.tensors), path)
        for slots in writer.slots.values():
            for slot in slots:
                writer.write(slot, 0, memoryview(bytes(slot.size)))
                writer.put(slot, 0, memoryview(bytes(slot.size)))
        writer.close()
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def test_every_format_has_the_size_that_was_told(tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.safetensors", "7", "bf16", layers=2, width=64, vocab=256)
    run = prepared("m.safetensors", HOLD, tmp_path)
    told = sizes(run)
    weights = Imatrix("", {"blk.0.time_mix_key.weight": np.ones(64, np.float32)}, {"blk.0.time_mix_key.weight": 1.0},
                      ("calibration.txt",), 3, 512)  # fmt: skip
    found = {}
    for which in expand(run.blueprint.recipe):
        item = format_of(job_from(which.id, job_of(run.blueprint, which), Path(), weights))
        assert item is not None
        if item.refuse(architecture_of(_tensors(source))) is None:
            found[which.id] = made(item, source, tmp_path / which.format)
    assert told == found
    assert len(found) > len(HOLD) // 2


def test_types_that_are_searched_for_have_no_size_yet(tmp_path: Path) -> None:
    formats = ["gguf-q4_k_m", "{format: gguf-q4_k_m-mixed, target: {kl: 0.1}}"]
    source = str(checkpoints.make(tmp_path / "tiny.pth", "7", layers=1, width=256, vocab=256))
    assert [name.partition("@")[0] for name in sizes(prepared(source, formats, tmp_path))] == ["tiny/gguf-q4_k_m"]


def _tensors(source: Path) -> dict[str, TensorInfo]:
    with open_checkpoint(source) as opened:
        return dict(opened.tensors)


def test_a_checkpoint_elsewhere_is_asked_for_its_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", "bf16", layers=2, width=64, vocab=256)
    here = sizes(prepared("m.pth", ["ggml-q5_1", "gguf-q8_0"], tmp_path))
    away = prepared("hf://a/b/m.pth", ["ggml-q5_1", "gguf-q8_0"], tmp_path)
    asked = []

    def tensors(text: str) -> dict[str, TensorInfo]:
        asked.append(text)
        return _tensors(source)

    monkeypatch.setattr(header, "tensors_of_source", tensors)
    told = sizes(away)
    assert asked == [away.blueprint.lock.models["tiny"].resolved]
    assert told["tiny/ggml-q5_1@py3.11-torch2.13.0"] == here["tiny/ggml-q5_1@py3.11-torch2.13.0"]
    assert told["tiny/gguf-q8_0@py3.11-torch2.13.0"] > here["tiny/gguf-q8_0@py3.11-torch2.13.0"], "it names the page"
    assert not sizes(away, ask=False)
