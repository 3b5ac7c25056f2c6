"""`rwkvflow bench` and `perplexity`: the figures are there, and are what their names say."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.engine import Model
from rwkvflow.engine.measure import losses, measure_bandwidth
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import logits as reference_logits
from scripts.demo_stories import story
from tests.engine import encoder, librwkv

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "rwkvflow" / "worker" / "data" / "smoke.txt"
DEMOS = ("rwkv4-demo", "rwkv5.2-demo", "rwkv6-demo", "rwkv7-demo")


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture(scope="session")
def demo(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("demos")

    def make(name: str, kind: str) -> Path:
        target = root / f"{name}-{kind}.bin"
        if not target.is_file():
            source = ROOT / "recipes" / "demo" / f"{name}.pth"
            (outcome,) = convert(source, library, [ConversionJob("x", f"ggml-{kind}", target)])
            assert outcome.failure is None
        return target

    return make


def run(*arguments: str | Path, library: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkvflow", *map(str, arguments), "--library", str(library), "--threads", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
    )


@pytest.fixture(scope="session")
def found(demo: Callable[[str, str], Path], library: Path) -> dict[str, Any]:
    """A library against itself."""
    models = [demo("rwkv7-demo", "q8_0"), demo("rwkv4-demo", "f16")]
    sizes = ["--tokens", "8", "--prompt", "16", "--rounds", "2"]
    done = run("bench", *models, "--against", library, "--json", *sizes, library=library)
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def test_bench_measures_each_model_in_each_library(found: dict[str, Any]) -> None:
    rows = found["rows"]
    assert [Path(row["model"]).name for row in rows] == [
        *["rwkv7-demo-q8_0.bin"] * 2,
        *["rwkv4-demo-f16.bin"] * 2,
    ]
    assert [row["type"] for row in rows] == ["Q8_0", "Q8_0", "F16", "F16"]
    for row in rows:
        assert math.isclose(row["tokens_a_second"] * row["ms_a_token"], 1000)
        assert 0 < row["ms_a_token_best"] <= row["ms_a_token"]
        assert row["bandwidth_share"] == pytest.approx(
            row["bytes_a_token"] / (row["ms_a_token"] / 1e3) / found["bandwidth"]
        )
        assert 0 < row["load_s"] < 60
        assert row["prompt_tokens_a_second"] > 0
    if sys.platform == "linux":
        assert all(row["peak_bytes"] > row["bytes_a_token"] / 2 for row in rows)


def test_a_token_reads_all_but_the_embedding(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        with open_checkpoint(ROOT / "recipes" / "demo" / f"{Path(row['model']).name[:10]}.pth") as checkpoint:
            info = checkpoint.tensors["emb.weight"]
        embedding = 2 * math.prod(info.shape)  # F16 in either file
        headers = row["bytes"] - row["bytes_a_token"] - embedding
        assert 0 < headers < 10000


def test_ratios_compare_the_two(found: dict[str, Any]) -> None:
    for number, ratio in enumerate(found["ratios"]):
        ours, theirs = found["rows"][2 * number : 2 * number + 2]
        assert ratio["decode"] == pytest.approx(theirs["ms_a_token"] / ours["ms_a_token"])
        assert ratio["prompt"] == pytest.approx(ours["prompt_tokens_a_second"] / theirs["prompt_tokens_a_second"])


def test_the_table(demo: Callable[[str, str], Path], library: Path) -> None:
    model = demo("rwkv7-demo", "q8_0")
    done = run("bench", model, "-n", "4", "--prompt", "0", "--rounds", "1", library=library)
    first, header, row = done.stdout.splitlines()
    assert first.startswith("1 threads; this machine reads ")
    assert header.split() == ["model", "type", "size", "load", "a", "token", "decode", "prompt", "bandwidth", "memory"]
    assert row.split()[:2] == [model.name, "Q8_0"]
    assert "librwkv.so, round 1 of 1" not in done.stdout


def test_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < measure_bandwidth(1)["bytes_per_second"] < 1e12


def test_what_cannot_be_measured_is_named(library: Path, tmp_path: Path) -> None:
    done = run("bench", "README.md", library=library)
    assert done.returncode == 1
    assert "only ggml-* files" in done.stderr
    (tmp_path / "librwkv.so").write_bytes(b"")
    done = run("perplexity", "README.md", TEXT, library=tmp_path / "librwkv.so")
    assert done.returncode == 1
    assert "librwkv.so cannot be used" in done.stderr


def test_a_library_that_crashes_is_said_to(demo: Callable[[str, str], Path], library: Path, tmp_path: Path) -> None:
    (tmp_path / "crash.cc").write_text("__attribute__((constructor)) static void f(void) { __builtin_trap(); }\n")
    bad = tmp_path / "bad.so"
    compiler = encoder.compilers()[encoder.any_compiler()]
    subprocess.run([*compiler, "-shared", "-fPIC", "-nostdlib", "-o", bad, tmp_path / "crash.cc"], check=True)
    done = run("bench", demo("rwkv7-demo", "q8_0"), "--against", bad, "-n", "2", "--rounds", "1", library=library)
    assert done.returncode == 1
    assert "a measurement ended with signal" in done.stderr


def test_losses_are_those_of_the_reference(demo: Callable[[str, str], Path], library: Path) -> None:
    tokens = list(TEXT.read_bytes()[:80])
    with open_checkpoint(ROOT / "recipes" / "demo" / "rwkv7-demo.pth") as checkpoint:
        wanted = reference_logits(checkpoint, tokens).astype(np.float64)
    shifted = wanted - wanted.max(1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    expected = -np.log(chances[np.arange(79), tokens[1:]])
    with Model(demo("rwkv7-demo", "f32"), library) as model:
        np.testing.assert_allclose(list(losses(model, tokens)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DEMOS)
def test_quantized_files_lose_little(name: str, demo: Callable[[str, str], Path], library: Path) -> None:
    """Over stories that the models have not seen: on a few hundred bytes, chance is larger than the loss."""
    tokens = list(b"\n\n".join(story(dice).encode() for dice in [random.Random(4)] for _ in range(30))[:12000])
    means = {}
    for kind in ("f16", "q8_0", "q5_1"):
        with Model(demo(name, kind), library) as model:
            means[kind] = math.fsum(losses(model, tokens)) / (len(tokens) - 1)
    assert math.exp(means["q8_0"] - means["f16"]) < 1.001
    assert math.exp(means["q5_1"] - means["f16"]) < 1.01


def test_bits_a_byte_are_of_the_bytes_that_the_text_has(
    demo: Callable[[str, str], Path], library: Path, tmp_path: Path
) -> None:
    """Also where the first or the last token cuts a character, and of a text that is not UTF-8."""
    model, path = demo("rwkv7-demo", "f16"), tmp_path / "text"
    for content, count in (("éa漢字 é".encode(), 6), ("éa漢字".encode(), 8), ("Füße à la mode".encode("latin-1"), 14)):
        path.write_bytes(content)
        done = run("perplexity", model, path, "-n", str(count), "--json", library=library)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        assert figures["tokens"] == figures["bytes"] == count - 1
        with Model(model, library) as opened:
            loss = math.fsum(losses(opened, list(content[:count])))
        assert figures["bits_a_byte"] == pytest.approx(loss / math.log(2) / (count - 1), rel=1e-4)


def test_perplexity(demo: Callable[[str, str], Path], library: Path) -> None:
    model = demo("rwkv7-demo", "f16")
    done = run("perplexity", model, TEXT, "-n", "120", "--json", library=library)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    with Model(model, library) as opened:
        mean = math.fsum(losses(opened, list(TEXT.read_bytes()[:120]))) / 119
    assert figures["tokens"] == figures["bytes"] == 119
    assert figures["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert figures["bits_a_byte"] == pytest.approx(mean / math.log(2), rel=1e-4)
    text = run("perplexity", model, TEXT, "-n", "120", library=library).stdout
    assert text.startswith(f"perplexity {figures['perplexity']:.4f}, {figures['bits_a_byte']:.4f} bits per byte")
