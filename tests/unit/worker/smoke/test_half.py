"""Formats that are run in fp16: what fp16 does not hold fails, and the proof says how that was shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import BOUNDED, EMULATED, RUN
from rwkvflow.worker.formats.chatrwkv.layout import of_strategy
from rwkvflow.worker.formats.mix import Mix
from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.formats.runtimes import infinite_in
from rwkvflow.worker.model.tokenizers import PseudoRandom
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference.model import Reference as Forward
from rwkvflow.worker.requests import AskParams, SmokeJobRequest
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.judge import Stored
from rwkvflow.worker.smoke.questions import Questions, SmokeReference, read_reference, write_reference
from rwkvflow.worker.tasks import smoke
from tests.helpers import checkpoints

ASKED = Questions((1, 2, 3, 4, 5, 6), 6, ((1,),), 2)
HALF = {name: item.half for name, item in FORMATS.items() if item.half}
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
    peaks = (forward.peaks.square, forward.peaks.residual, forward.peaks.block, 256)
    return SmokeReference(ASKED, answers, None, "auto", None, *peaks)


def judged(
    found: SmokeReference, name: str, tmp_path: Path, *, runtime: bool = False
) -> tuple[str | None, dict[str, Any]]:
    """The verdict on an artifact that gives the very answers of the reference in fp32."""
    outputs = {"smoke": str(tmp_path / "smoke.json")}
    job: SmokeJobRequest = {"id": "x", "params": {"format": name, "input": "x"}, "outputs": outputs}
    params: AskParams = {"tokenizer": "auto", "group_norm_eps": None, "prompts": ["a"], "tokens": 2}
    failure = smoke._judge(
        job, (found, found), replace(found.answers, runtime=runtime), params, PseudoRandom(64, ""), Stored(1, 1)
    )
    return failure, json.loads((tmp_path / "smoke.json").read_text())


def test_the_formats_that_are_run_in_fp16() -> None:
    assert HALF == {
        "chatrwkv-cuda-fp16": RUN,
        "chatrwkv-cuda-fp16i8": RUN,
        "faster-rwkv-f16": EMULATED,
        "ncnn-f16": BOUNDED,
        "prefab-f16": EMULATED,
        "prefab-int8": EMULATED,
        "prefab-nf4": EMULATED,
        "web-rwkv": EMULATED,
    }
    assert of_strategy("cuda bf16 *3 -> cuda fp16i8 *1 -> cpu fp32").half == RUN
    assert of_strategy("cpu fp16").half == RUN
    assert not of_strategy("cuda bf16 *3 -> cpu fp32").half


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
@pytest.mark.parametrize("factors", [LOUD, WIDE], ids=["k²", "between layers"])
def test_what_fp16_does_not_hold_fails(version: str, factors: dict[str, float], tmp_path: Path) -> None:
    found = reference(tmp_path / "m.safetensors", version, factors)
    what = "k² of the feed-forward" if factors is LOUD else "what stands between layers"
    for name in (name for name, how in HALF.items() if how != EMULATED):  # which gives NaN itself
        failure, report = judged(found, name, tmp_path)
        assert failure is not None
        assert f"{what} reaches" in failure
        assert not report["passed"]
    assert judged(found, "chatrwkv-cuda-fp16", tmp_path, runtime=True)[0] is None  # it has run, and gave these answers
    assert judged(found, "ncnn-f16", tmp_path, runtime=True)[0] is not None  # but in fp32
    for name in ("chatrwkv-cpu-bf16", "ggml-f16", "safetensors"):
        assert judged(found, name, tmp_path)[0] is None


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_other_models_pass_and_the_proof_says_what_was_not_run(version: str, tmp_path: Path) -> None:
    found = reference(tmp_path / "m.safetensors", version, {})
    assert 0 < found.square < 65504
    write_reference(tmp_path / "reference.npz", found)
    read = read_reference(tmp_path / "reference.npz")
    assert (read.square, read.residual) == (found.square, found.residual)
    for name, how in HALF.items():
        failure, report = judged(read, name, tmp_path)
        assert failure is None
        assert ("its arithmetic in fp16 was not run" in report.get("proof", "")) == (how != EMULATED)
    assert "proof" not in judged(read, "chatrwkv-cuda-fp16", tmp_path, runtime=True)[1]
    assert "proof" not in judged(read, "ggml-f16", tmp_path)[1]


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_the_forward_pass_in_fp16_is_close_and_is_nan_where_fp16_does_not_hold_it(version: str, tmp_path: Path) -> None:
    for factors in ({}, LOUD, WIDE):
        found = reference(tmp_path / "m.safetensors", version, factors)
        with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
            answers = answer(Forward(checkpoint, in_half=True), ASKED)
        assert (judge.finite(answers) is None) == (not factors)
        if not factors:
            assert 1e-5 < judge.compare(found.answers, answers).logits < 0.05
    assert "what stands between layers reaches" in judge.overflow("web-rwkv", found)[0]


def test_a_pass_in_fp16_halves_after_six_layers_as_runtimes_do(tmp_path: Path) -> None:
    """Before version 7: else what they hold would be infinite."""
    for version, holds in (("6", True), ("7", False)):
        entries = []
        for entry in checkpoints.entries(version, "f32", 3, layers=13, width=64, vocab=64):
            values = np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape)
            if entry.name.endswith("att.output.weight"):
                values = values * np.float32(0)
            if entry.name == "blocks.12.ffn.value.weight":
                values = values * np.float32(40000)
            entries.append(checkpoints.array_entry(entry.name, values.astype("<f4"), "f32"))
        path = tmp_path / f"{version}.safetensors"
        checkpoints.write_safetensors(path, entries)
        with open_checkpoint(path) as checkpoint:
            plain = Forward(checkpoint)
            assert judge.finite(answer(plain, ASKED)) is None
            assert (plain.peaks.residual < 65504) == holds
            assert (judge.finite(answer(Forward(checkpoint, in_half=True), ASKED)) is None) == holds


@pytest.mark.parametrize(
    ("name", "runtimes"),
    [
        ("ggml-f16", ["rwkv.cpp"]),
        ("ggml-q5_1", ["rwkv.cpp"]),
        ("ggml-q4_1-from-f32", ["rwkv.cpp"]),
        ("gguf-q4_k_m-mixed", []),  # llama.cpp itself has run it
        ("ggml-q8_0", []),  # of which a scale is 127 times as small
        ("ggml-f32", []),
        ("ggml-q4_k", []),
        ("gguf-f16", []),  # llama.cpp itself has run it
        ("web-rwkv", []),
    ],
)
def test_a_file_is_not_for_what_would_multiply_in_fp16(name: str, runtimes: list[str], tmp_path: Path) -> None:
    found = reference(tmp_path / "m.safetensors", "7", {"ffn.key.weight": 200.0, "ffn.value.weight": 1 / 4e4})
    assert 65504 < found.square < 127 * 65504
    report = judged(found, name, tmp_path)[1]
    assert list(report.get("not_for", {})) == runtimes
    assert "not_for" not in judged(replace(found, square=1.0, block=2.0), name, tmp_path)[1]
    assert infinite_in(FORMATS["ggml-q8_0"], 256, 127 * 65504.0, 0.0).keys() == {"rwkv.cpp"}
    assert infinite_in(FORMATS["gguf-f16"], 256, 65504.0, 0.0).keys() == {"llama.cpp"}
    assert infinite_in(FORMATS["ggml-q4_k"], 256, 1e9, 1e9) == {}
    # Rows that are no whole blocks of 256 are of a type with blocks of 32.
    assert infinite_in(FORMATS["gguf-q4_k_m"], 896, 1e9, 1e9).keys() == {"llama.cpp"}


MIXABLE = [name for name, item in FORMATS.items() if item.mixes]


@pytest.mark.parametrize(
    "name", [*FORMATS, *(f"{name}-from-f32" for name in MIXABLE), *(f"{n}-mixed" for n in MIXABLE)]
)
def test_of_every_format_it_is_known_what_its_runtimes_take_for_infinite(name: str) -> None:
    item = FORMATS[name]
    assert infinite_in(item, 256, 1.0, 1.0) == {}
    told = infinite_in(item, 256, 1e30, 1e30)
    assert told.keys() <= {"rwkv.cpp", "llama.cpp"}
    assert bool(told) <= (item.family in ("ggml", "gguf"))


def test_types_of_single_tensors_decide_what_is_infinite() -> None:
    item = FORMATS["gguf-q4_k_m-mixed"]
    value = "blk.3.channel_mix_value.weight"
    for mix, found in (
        (Mix(), set()),
        (Mix(exact={value: "f16"}), {"llama.cpp"}),
        (Mix(rules=((r"channel_mix_value", "q5_1"),)), {"llama.cpp"}),
        (Mix(rules=((r"channel_mix_key", "f16"),), output="f16"), set()),
        (Mix(exact={value: "q6_k"}), set()),
    ):
        assert infinite_in(replace(item, mix=mix), 256, 66000.0, 66000.0).keys() == found, mix
    assert infinite_in(replace(item, name="gguf-of-mine", quantization=""), 256, 1e30, 1e30) == {}
    # Of a scale, 127 times as much is needed.
    assert infinite_in(replace(item, mix=Mix(exact={value: "q8_0"})), 256, 66000.0, 66000.0) == {}
