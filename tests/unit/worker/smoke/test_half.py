"""Formats that are run in fp16 and proved in fp32: what fp16 does not hold fails, and the proof says what was shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.chatrwkv.layout import of_strategy
from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.model.tokenizers import PseudoRandom
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference.model import Reference as Forward
from rwkvflow.worker.requests import AskParams, SmokeJobRequest
from rwkvflow.worker.smoke.judge import Stored
from rwkvflow.worker.smoke.questions import Questions, SmokeReference, read_reference, write_reference
from rwkvflow.worker.tasks import smoke
from tests.helpers import checkpoints

ASKED = Questions((1, 2, 3, 4, 5, 6), 6, ((1,),), 2)
HALF = sorted(name for name, item in FORMATS.items() if item.computes_in_f16)
#: What is multiplied so that k² passes 65504 and the logits stay what they are, and what makes the residual large.
LOUD = {"ffn.key.weight": 1e4, "ffn.value.weight": 1e-8}
WIDE = {"att.output.weight": 1e8}


def reference(path: Path, version: str, factors: dict[str, float]) -> SmokeReference:
    entries = []
    for entry in checkpoints.entries(version, "f32", 3, layers=2, width=64, vocab=64):
        values = np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape)
        factor = next((factor for name, factor in factors.items() if entry.name.endswith(name)), 1.0)
        entries.append(checkpoints.array_entry(entry.name, (values * np.float32(factor)).astype("<f4"), "f32"))
    checkpoints.write_safetensors(path, entries)
    with open_checkpoint(path) as checkpoint:
        forward = Forward(checkpoint)
        answers = answer(forward, ASKED)
    return SmokeReference(ASKED, answers, None, "auto", None, forward.peaks.square, forward.peaks.residual)


def judged(found: SmokeReference, name: str, tmp_path: Path) -> tuple[str | None, dict[str, Any]]:
    """The verdict on an artifact that gives the very answers of the reference in fp32."""
    outputs = {"smoke": str(tmp_path / "smoke.json")}
    job: SmokeJobRequest = {"id": "x", "params": {"format": name, "input": "x"}, "outputs": outputs}
    params: AskParams = {"tokenizer": "auto", "group_norm_eps": None, "prompts": ["a"], "tokens": 2}
    failure = smoke._judge(job, found, found.answers, params, PseudoRandom(64, ""), Stored(1, 1))
    return failure, json.loads((tmp_path / "smoke.json").read_text())


def test_the_formats_that_are_run_in_fp16() -> None:
    assert HALF == [
        "chatrwkv-cuda-fp16",
        "chatrwkv-cuda-fp16i8",
        "faster-rwkv-f16",
        "ncnn-f16",
        "web-rwkv",
    ]
    assert of_strategy("cuda bf16 *3 -> cuda fp16i8 *1 -> cpu fp32").computes_in_f16
    assert not of_strategy("cuda bf16 *3 -> cpu fp32").computes_in_f16


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
@pytest.mark.parametrize("factors", [LOUD, WIDE], ids=["k²", "between layers"])
def test_what_fp16_does_not_hold_fails(version: str, factors: dict[str, float], tmp_path: Path) -> None:
    found = reference(tmp_path / "m.safetensors", version, factors)
    what = "k² of the feed-forward" if factors is LOUD else "what stands between layers"
    for name in HALF:
        failure, report = judged(found, name, tmp_path)
        assert failure is not None
        assert f"{what} reaches" in failure
        assert not report["passed"]
    for name in ("chatrwkv-cpu-bf16", "ggml-f16", "safetensors"):
        assert judged(found, name, tmp_path)[0] is None


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_other_models_pass_and_the_proof_says_what_was_not_run(version: str, tmp_path: Path) -> None:
    found = reference(tmp_path / "m.safetensors", version, {})
    assert 0 < found.square < 65504
    write_reference(tmp_path / "reference.npz", found)
    read = read_reference(tmp_path / "reference.npz")
    assert (read.square, read.residual) == (found.square, found.residual)
    for name in HALF:
        failure, report = judged(read, name, tmp_path)
        assert failure is None
        assert "its arithmetic in fp16 was not run" in report["proof"]
    assert "proof" not in judged(read, "ggml-f16", tmp_path)[1]
