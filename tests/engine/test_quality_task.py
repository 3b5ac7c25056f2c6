"""Task `quality`: figures of files that librwkv runs, against the engine asked directly; limits; the loss by layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.engine.binding import Model
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.smoke.domain_names import DOMAINS
from rwkvflow.worker.smoke.domains import FOLDER
from tests.engine import librwkv
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("ggml-q8_0", "gguf-q4_0")
TOKENS = 80


@pytest.fixture(scope="module")
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a step has it, with two artifacts."""
    folder = tmp_path_factory.mktemp("work")
    library = librwkv.with_zig(request.config) / "librwkv.so"
    (folder / "in" / "engine" / "lib").mkdir(parents=True)
    (folder / "in" / "engine" / "lib" / "librwkv.so").symlink_to(library)
    checkpoints.make(folder / "in" / "checkpoint.pth", "7", layers=2, width=64, vocab=256, ffn=64)
    (folder / "in" / "checkpoint.pth").rename(folder / "in" / "checkpoint")
    names = [*FORMATS, "ggml-f32"]
    jobs = [ConversionJob(name, name, folder / "in" / f"artifact-{name}") for name in names]
    for outcome in convert(folder / "in" / "checkpoint", folder / "in" / "engine", jobs):
        assert outcome.failure is None
    return folder


def run(work: Path, limits: dict[str, dict[str, float]]) -> str:
    params = {"tokenizer": "bytes", "group_norm_eps": None, "tokens": TOKENS}
    jobs = [
        {
            "id": name,
            "params": {"format": name, "input": f"artifact-{name}", "limits": limits},
            "outputs": {"quality": f"out/{name}.json"},
        }
        for name in FORMATS
    ]
    (work / "in" / "request.json").write_text(json.dumps({"task": "quality", "params": params, "jobs": jobs}))
    command = [sys.executable, "-m", "rwkvflow.worker", "in/request.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits(model: Model, tokens: list[int]) -> np.ndarray:
    out, state = [], None
    for token in tokens:
        values, state = model.eval(token, state)
        out.append(values.astype(np.float64))
    return np.stack(out)


def test_figures_are_those_of_the_engines_logits(work: Path) -> None:
    assert '"failed"' not in run(work, {})
    tokens = list((FOLDER / "code.txt").read_bytes()[:TOKENS])
    library = work / "in" / "engine" / "lib" / "librwkv.so"
    with Model(work / "in" / "artifact-ggml-f32", library) as truth:
        expected = logits(truth, tokens)
    p = np.exp(expected - np.logaddexp.reduce(expected, 1)[:, None])
    for name in FORMATS:
        report = json.loads((work / "out" / f"{name}.json").read_text())
        assert set(report["domains"]) == set(DOMAINS)
        with Model(work / "in" / f"artifact-{name}", library) as model:
            found = logits(model, tokens)
        log_q = found - np.logaddexp.reduce(found, 1)[:, None]
        code = report["domains"]["code"]
        assert code["tokens"] == TOKENS
        assert code["kl"] == pytest.approx((p * (np.log(p) - log_q)).sum(1).mean(), rel=1e-2, abs=1e-6)
        assert code["perplexity"] == pytest.approx(np.exp(-log_q[np.arange(TOKENS - 1), tokens[1:]].mean()), rel=1e-3)
        assert code["kl_se"] is None, "of 80 tokens there is no error"
        assert set(report["tasks"]) == {"last_words", "last_words_exact", "sums"}
        assert report["tasks"]["sums"]["items"] == 64
        assert len(report["layers"]) == 2
        assert all(0 < value < 1 for value in report["layers"]), "each layer alone, and the reference unchanged"
        assert report["passed"]
    before = {name: (work / "out" / f"{name}.json").read_bytes() for name in FORMATS}
    told = run(work, {"code": {"kl": 1e-12}, "prose": {"perplexity": 9.0}})
    assert told.count('"failed"') == 2
    assert "ggml-q8_0: code: kl" in told
    assert "over the recipe's 1e-12" in told
    after = json.loads((work / "out" / "ggml-q8_0.json").read_text())
    assert not after["passed"]
    assert after["domains"] == json.loads(before["ggml-q8_0"])["domains"]
    assert not list((work / "out").glob(".f32-*")), "nothing is left behind"
