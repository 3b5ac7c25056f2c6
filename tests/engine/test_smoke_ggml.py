"""Smoke with the real engine: the demo models pass in every ggml format, and damaged artifacts fail alone."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.protocol import parse
from rwkvflow.worker.requests import AskParams, ConversionJobRequest, JobRequest, SmokeJobRequest
from rwkvflow.worker.tasks import ask as ask_task
from rwkvflow.worker.tasks import convert as convert_task
from rwkvflow.worker.tasks import reference as reference_task
from rwkvflow.worker.tasks import smoke as smoke_task
from tests.engine import librwkv

ROOT = Path(__file__).resolve().parents[2]
DEMO = sorted((ROOT / "recipes" / "demo").glob("*-demo.pth"))
GGML = [name for name in FORMATS if name.startswith("ggml-")]
PARAMS: AskParams = {"tokenizer": "auto", "prompts": ["Once there was "], "tokens": 24, "group_norm_eps": None}


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    """librwkv; RWKVFLOW_LIBRARY names one that is there already."""
    named = os.environ.get("RWKVFLOW_LIBRARY")
    return Path(named) if named else librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture(params=DEMO, ids=lambda path: path.stem)
def place(
    request: pytest.FixtureRequest, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> Path:
    """A sandbox with a demo model, its reference and all its ggml artifacts, as in/<format>."""
    monkeypatch.chdir(tmp_path)
    for folder in ("in/engine/lib", "out"):
        Path(folder).mkdir(parents=True)
    shutil.copy(library, "in/engine/lib/" + library.name)
    shutil.copy(request.param, "in/checkpoint")
    shutil.copy(ROOT / "rwkvflow" / "worker" / "data" / "smoke.txt", "in/text")
    jobs: list[ConversionJobRequest] = [
        {"id": n, "params": {"format": n}, "outputs": {"artifact": f"out/{n}"}} for n in GGML
    ]
    convert_task.run({"params": {}, "jobs": jobs})
    for name in GGML:
        Path("out", name).rename(Path("in", name))
    job: JobRequest = {"id": "r", "outputs": {"reference": "out/reference", "questions": "out/questions"}}
    reference_task.run({"params": PARAMS, "jobs": [job]})
    for name in ("reference", "questions"):
        Path("out", name).rename(Path("in", name))
    capfd.readouterr()
    return tmp_path


def run(capfd: Any, jobs: list[tuple[str, str]], **params: Any) -> tuple[list[str], dict[str, str]]:
    """Jobs are (format, input); gives the inputs that passed, and the messages of the others."""
    full: list[SmokeJobRequest] = [
        {"id": name, "params": {"format": kind, "input": name}, "outputs": {"smoke": f"out/{name}.json"}}
        for kind, name in jobs
    ]
    asked: list[SmokeJobRequest] = [{**job, "outputs": {"answers": f"out/answers-{job['id']}"}} for job in full]
    every = cast(AskParams, {**PARAMS, **params})
    ask_task.run({"params": every, "jobs": asked})
    found = [m for line in capfd.readouterr().out.splitlines() if (m := parse(line))]
    told = {m["output"]["job"] for m in found if "output" in m}
    for job in full:  # one at a time: here several jobs may have the same format
        if job["id"] in told:
            Path(f"out/answers-{job['id']}").replace(f"in/answers-{job['params']['format']}")
            smoke_task.run({"params": every, "jobs": [job]})
    found = [m for m in found if "failed" in m]
    found += [m for line in capfd.readouterr().out.splitlines() if (m := parse(line))]
    passed = [m["output"]["job"] for m in found if "output" in m]
    return passed, {m["failed"]["job"]: m["failed"]["message"] for m in found if "failed" in m}


def test_demo_models_pass_in_every_ggml_format(place: Path, capfd: Any) -> None:
    assert len(GGML) >= 12
    passed, failed = run(capfd, [(name, name) for name in GGML])
    assert failed == {}
    assert passed == GGML
    reports = {name: json.loads(Path("out", f"{name}.json").read_text()) for name in GGML}
    # Fewer bits lose more, and the figures see it.
    assert reports["ggml-f32"]["logits"] == 0
    assert 0 < reports["ggml-q8_0"]["logits"] < reports["ggml-q5_1"]["logits"] < reports["ggml-q4_0"]["logits"]
    assert reports["ggml-f32"]["continuations"][0]["text"].isascii()
    worse = [reports[f"ggml-{kind}"] for kind in ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_0")]
    for less, more in itertools.pairwise(worse):
        assert less["kl_divergence"] <= more["kl_divergence"]
        assert less["bits_per_weight"] > more["bits_per_weight"]
    assert worse[0]["kl_divergence"] == 0 < worse[-1]["kl_divergence"]
    assert all(report["evaluated"] == "runtime" and report["kl_divergence_tokens"] == 512 for report in worse)
    # What users are promised of these two.
    for name in (name for name in GGML if "q8_0" in name or "q5_1" in name):
        assert reports[name]["perplexity_rise"] <= (0.001 if "q8_0" in name else 0.01), name


def test_damaged_artifacts_fail_alone_and_say_why(place: Path, capfd: Any) -> None:
    good = Path("in/ggml-f32").read_bytes()
    Path("in/cut").write_bytes(good[: len(good) // 2])
    Path("in/text-file").write_text("no model")
    Path("in/nan").write_bytes(good[:-400] + b"\xff\xff\xff\x7f" * 100)  # the end is the head's last rows
    Path("in/zeroed").write_bytes(good[:-60000] + b"\0" * 60000)
    names = ("cut", "text-file", "nan", "absent", "ggml-f32", "zeroed", "ggml-q4_0")
    passed, failed = run(capfd, [("ggml-f32", name) for name in names])
    assert passed == ["ggml-f32"]
    for name in ("cut", "text-file"):
        assert "the engine refused it" in failed[name]
    assert "logits are NaN or infinite after 1 tokens" in failed["nan"]
    assert "No such file" in failed["absent"]
    for name in ("zeroed", "ggml-q4_0"):
        assert "of the reference's standard deviation" in failed[name]
        assert "ggml-f32 allows 0.0001" in failed[name]


def test_the_decode_speed_is_told_where_it_is_asked_for(place: Path, capfd: Any) -> None:
    passed, _ = run(capfd, [("ggml-q8_0", "ggml-q8_0")], speed=True)
    assert passed == ["ggml-q8_0"]
    report = json.loads(Path("out/ggml-q8_0.json").read_text())
    assert report["tokens_per_second"] > 10  # a model of a megabyte
    assert report["speed"]["tokens"] == 512 - 8
    assert report["speed"]["threads"] >= 1
    assert report["speed"]["cpu"]
