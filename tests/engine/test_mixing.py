"""Tasks `measure` and `assign`, and the file that is made of their choice: within the target, and of these types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.engine.binding import Model
from rwkvflow.worker.conversion.patched import PatchedFile, tensors_of, values_of
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.smoke.domain_names import DOMAINS
from tests.engine import librwkv
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
FORM = "gguf-q4_k_m-mixed"
KINDS = ("q4_0", "q8_0")
COMMON = {"tokenizer": "bytes", "group_norm_eps": None}


@pytest.fixture(scope="module")
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a step has it, with the losses of two types."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "in" / "engine" / "lib").mkdir(parents=True)
    library = librwkv.with_zig(request.config) / "librwkv.so"
    (folder / "in" / "engine" / "lib" / "librwkv.so").symlink_to(library)
    checkpoints.make(folder / "in" / "m.pth", "7", layers=1, width=64, vocab=256, ffn=64)
    (folder / "in" / "m.pth").rename(folder / "in" / "checkpoint")
    for kind in KINDS:
        assert not run(folder, "measure", {**COMMON, "tokens": 640, "kind": kind}, {"losses": f"in/losses/{kind}"})
    return folder


def run(folder: Path, task: str, params: dict[str, Any], outputs: dict[str, str], job: Any = None) -> str:
    request = {"task": task, "params": params, "jobs": [{"id": "x", "params": job or {}, "outputs": outputs}]}
    (folder / "in" / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", "rwkvflow.worker", "in/request.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def losses(work: Path, kind: str) -> dict[str, Any]:
    found = json.loads((work / "in" / "losses" / kind).read_text())
    assert (found["kind"], found["tokens"]) == (kind, 640)
    matrices: dict[str, Any] = found["matrices"]
    return matrices


def test_each_matrix_has_its_loss_and_more_bits_lose_less(work: Path) -> None:
    four, eight = losses(work, "q4_0"), losses(work, "q8_0")
    assert len(four) == 8
    assert four.keys() == eight.keys()
    assert {"output.weight", "token_embd.weight", "blk.0.time_mix_key.weight"} <= four.keys()
    for name, told in four.items():
        assert set(told["losses"]) == set(DOMAINS)
        for text in DOMAINS:
            assert 0 <= eight[name]["losses"][text] < told["losses"][text] < 1, (name, text)
        assert told["bytes"] * 34 == eight[name]["bytes"] * 18
    assert not list((work / "out").glob(".f32-*"))


@pytest.mark.parametrize("target", [{"bits_per_weight": 0.0}, {"size": 0.0}, {"kl": 0.001}])
def test_the_file_is_within_the_target(work: Path, target: dict[str, float]) -> None:
    (work / "in" / "types").mkdir(exist_ok=True)
    types = f"in/types/{FORM}"
    params = {**COMMON, "format": FORM, "kinds": [*KINDS, "f16"], "tokens": 640}
    plain = {**params, "target": {"kl": 1e9}}
    assert not run(work, "assign", plain, {"types": types})
    least = json.loads((work / types).read_text())
    assert set(least["types"].values()) == {"q4_0"}
    if "size" in target:
        target = {"size": least["file_size"] + 3000}
    if "bits_per_weight" in target:
        target = {"bits_per_weight": least["bits_per_weight"] + 1}
    assert not run(work, "assign", {**params, "target": target}, {"types": types})
    found = json.loads((work / types).read_text())
    assert len(found["counts"]) > 1
    job = {"format": FORM, "mix": {"searched": True}}
    assert not run(work, "convert", {}, {"artifact": "out/a.gguf"}, job)
    index = read_gguf_index(work / "out" / "a.gguf")
    assert {name: index.tensors[name].type for name in found["types"]} == found["types"]
    assert (work / "out" / "a.gguf").stat().st_size == found["file_size"]
    told = {kind: losses(work, kind) for kind in KINDS}
    for text, one in found["texts"].items():
        lost = sum(told[kind][name]["losses"][text] for name, kind in found["types"].items() if kind in told)
        assert one["loss"] == pytest.approx(lost, rel=1e-4)
        usual = [(each["q4_0"]["losses"][text] + each["q8_0"]["losses"][text]) / 2 for each in by_name(told).values()]
        assert one["usual"] == pytest.approx(sum(usual), rel=1e-4), "of other types than the plain file's: their mean"
    assert found["loss"] == pytest.approx(sum(one["loss"] for one in found["texts"].values()) / 5, rel=1e-4)
    assert found["gap"] is None or found["gap"] >= 0
    if "size" in target:
        assert least["file_size"] < found["file_size"] <= target["size"]
    elif "kl" in target:
        assert found["loss"] <= target["kl"]
    else:
        assert least["bits_per_weight"] + 0.5 < found["bits_per_weight"] <= target["bits_per_weight"]


def by_name(told: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {kind: told[kind][name] for kind in KINDS} for name in told[KINDS[0]]}


def test_a_text_of_the_recipes_is_the_only_one(work: Path) -> None:
    text = work / "in" / "text"
    text.write_text("A text of some words, again and again. " * 20, encoding="utf-8")
    try:
        assert not run(work, "measure", {**COMMON, "tokens": 256, "kind": "q4_0"}, {"losses": "out/own"})
    finally:
        text.unlink()
    found = json.loads((work / "out" / "own").read_text())
    assert found["tokens"] == 256
    assert all(set(each["losses"]) == {"text"} for each in found["matrices"].values())


def test_a_target_that_nothing_reaches_is_refused(work: Path) -> None:
    params = {**COMMON, "format": FORM, "kinds": list(KINDS), "tokens": 640, "target": {"bits_per_weight": 2.0}}
    told = run(work, "assign", params, {"types": "out/no"})
    assert "no choice of q4_0, q8_0 reaches the target" in told
    assert "the smallest has" in told


def test_what_was_patched_is_put_right_again(work: Path, tmp_path: Path) -> None:
    job = {"format": "gguf-f32"}
    assert not run(work, "convert", {}, {"artifact": "out/f32.gguf"}, job)
    assert not run(work, "convert", {}, {"artifact": "out/q.gguf"}, {"format": "gguf-q4_0"})
    path = work / "out" / "f32.gguf"
    before, name = path.read_bytes(), "blk.0.time_mix_key.weight"
    other = work / "out" / "q.gguf"
    base = PatchedFile(path, work / "in" / "engine" / "lib" / "librwkv.so", None)
    with base.with_values([name], other, tensors_of(other)) as model:
        assert isinstance(model, Model)
        wanted = values_of(other, tensors_of(other)[name])
        assert (values_of(path, base.tensors[name]) == wanted).all()
        assert path.read_bytes() != before
    assert path.read_bytes() == before
