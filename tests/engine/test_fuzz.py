"""The readers of model files, states and vocabularies under libFuzzer, with sanitizers: any bytes, never a crash.

A finding stays beside the corpus, as `crash-<sha1>` (or leak-, oom-, timeout-), in pytest's cache folder below
librwkv/; run the fuzzer with that file as its argument to see it again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.engine.states import SavedState, fingerprint, write_state
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.gguf.pairs import head, token_pairs
from rwkvflow.worker.formats.gguf.tokens import vocabulary
from rwkvflow.worker.model.versions import VERSIONS
from tests.engine import encoder, librwkv, tokenizer_files
from tests.helpers import checkpoints

SOURCES = {
    name: Path(__file__).resolve().parent / "fuzz" / f"fuzz_{name}.cc"
    for name in ("file", "gguf", "state", "tokenizer")
}
SANITIZERS = "address,undefined"
SIZE: dict[str, Any] = {"layers": 1, "width": 32, "vocab": 33, "head_size": 16}
# Twice the models' largest size: room to grow, and still thousands of inputs a second.
OPTIONS = ("-max_len=131072", "-len_control=0", "-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-seed=7")
ENVIRONMENT = {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _compiler() -> str:
    """A clang whose libFuzzer is installed; zig's has none."""
    names = ("clang++", *(f"clang++-{version}" for version in range(22, 12, -1)))
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None or not sys.platform.startswith("linux"):
        pytest.skip("no clang++ on this machine (Debian: apt-get install clang libclang-rt-14-dev)")
    asked = subprocess.run([found, "-print-resource-dir"], capture_output=True, text=True, check=True).stdout.strip()
    if not list(Path(asked).glob("lib/*/libclang_rt.fuzzer*.a")):
        pytest.skip("clang lacks libFuzzer (Debian: apt-get install libclang-rt-14-dev)")
    return found


@pytest.fixture(scope="session")
def fuzzers(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The programs; all of librwkv is built to count what it covers."""
    compiler = _compiler()

    def make(build: Path) -> None:
        library = librwkv.sanitized(build, compiler, f"{SANITIZERS},fuzzer-no-link")
        flags = ["-std=c++20", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={SANITIZERS},fuzzer"]
        flags += [f"-I{librwkv.ENGINE / 'include'}", f"-I{librwkv.ENGINE / 'src'}"]
        for name, source in SOURCES.items():
            command = [compiler, *flags, str(source), "-o", str(build / f"fuzz_{name}")]
            done = subprocess.run(
                [*command, f"-L{library}", "-lrwkv", "-lpthread", f"-Wl,-rpath,{library}"],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr

    build = librwkv.built(request.config, "fuzz", make, *SOURCES.values())
    return {name: build / f"fuzz_{name}" for name in SOURCES}


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small good file of each version and type."""
    root = tmp_path_factory.mktemp("seeds")
    engine = encoder.build(tmp_path_factory.mktemp("encoder"), encoder.any_compiler())
    kinds = ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
    for number, version in enumerate(VERSIONS):
        lora = {"maa": 8, "decay": 8, "w": 8, "a": 8, "v": 8, "g": 8}
        chosen = kinds if number == 5 else (kinds[number], kinds[number + 1])
        super_blocks = {"4": ("q4_k",), "7": ("q5_k",)}.get(version, ())  # of 256 weights a row
        for kind in (*chosen, *super_blocks):
            ffn = 256 if kind in super_blocks else 32
            source = checkpoints.make(root / "source.pth", version, **SIZE, ffn=ffn, lora=lora)
            (outcome,) = convert(source, engine, [ConversionJob("x", f"ggml-{kind}", root / f"{version}-{kind}.bin")])
            assert outcome.failure is None, outcome.failure
    (root / "source.pth").unlink()
    return root


@pytest.fixture(scope="session")
def saved(seeds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of one of the models, with and without logits."""
    root = tmp_path_factory.mktemp("saved")
    floats = np.random.default_rng(1).standard_normal(32 * 18 + 33).astype(np.float32)
    whole = SavedState(floats[:-33], floats[-33:], 9, "7", "librwkv", fingerprint(seeds / "7-f16.bin"))
    write_state(root / "with", whole)
    write_state(root / "without", replace(whole, logits=None))
    return root


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ones of both kinds, one of them in a GGUF."""
    root = tmp_path_factory.mktemp("vocabularies")
    (root / "world").write_text(tokenizer_files.world(), encoding="utf-8")
    for number, options in enumerate(({}, {"normalizer": None, "add_prefix_space": True})):
        (root / f"json{number}").write_text(tokenizer_files.bpe(40, **options), encoding="utf-8")
    (root / "gguf").write_bytes(head(0, token_pairs(vocabulary(320, root / "json0"))))
    return root


@pytest.fixture(scope="session")
def llama_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GGUF files of both versions, with a vocabulary of bytes, and one that is padded."""
    root = tmp_path_factory.mktemp("gguf")
    engine = encoder.build(tmp_path_factory.mktemp("encoder"), encoder.any_compiler())
    lora = {"maa": 8, "decay": 8, "w": 8, "a": 8, "v": 8, "g": 8}
    for version, kind, vocab in (("6", "f16", 33), ("7", "q8_0", 33), ("7", "f32", 260)):
        source = checkpoints.make(root / "source.pth", version, **{**SIZE, "vocab": vocab}, ffn=32, lora=lora)
        (outcome,) = convert(source, engine, [ConversionJob("x", f"gguf-{kind}", root / f"{version}-{kind}.gguf")])
        assert outcome.failure is None, outcome.failure
    (root / "source.pth").unlink()
    return root


def fuzz(
    program: Path, seeds: Path, corpus: Path, scratch: Path, seconds: int, env: dict[str, str] | None = None
) -> str:
    """Run for so long, keeping what covers more in `corpus`; the fuzzer's own report. Fails with a finding."""
    corpus.mkdir(parents=True, exist_ok=True)
    found = corpus.parent / "findings"
    found.mkdir(exist_ok=True)
    command = [program, *OPTIONS, f"-max_total_time={seconds}", f"-artifact_prefix={found}/", "-print_final_stats=1"]
    done = subprocess.run(
        [*map(str, command), str(corpus), str(seeds)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **ENVIRONMENT, **(env or {})},
        cwd=scratch,
        timeout=seconds + 120,
    )
    assert done.returncode == 0, f"{sorted(path.name for path in found.iterdir())}\n{done.stderr[-6000:]}"
    return done.stderr


def statistic(report: str, name: str) -> int:
    """One of the fuzzer's final figures."""
    return int(next(line for line in report.splitlines() if name in line).split()[-1])


def test_seeds_open_and_evaluate(fuzzers: dict[str, Path], seeds: Path, tmp_path: Path) -> None:
    files = sorted(seeds.iterdir())
    assert len(files) == 19
    done = subprocess.run(
        [fuzzers["file"], *files], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]


SECONDS = {"file": 20, "gguf": 20, "state": 5, "tokenizer": 10}


@pytest.fixture
def run(
    fuzzers: dict[str, Path], seeds: Path, llama_files: Path, saved: Path, vocabularies: Path, tmp_path: Path
) -> Callable[[str, Path, int], str]:
    """run(name, corpus, seconds) -> the report."""
    chosen = {"file": seeds, "gguf": llama_files, "state": saved, "tokenizer": vocabularies}

    def call(name: str, corpus: Path, seconds: int) -> str:
        env = {"RWKV_FUZZ_MODEL": str(seeds / "7-f16.bin")}
        return fuzz(fuzzers[name], chosen[name], corpus, tmp_path, seconds, env)

    return call


@pytest.mark.parametrize("name", SOURCES)
def test_some_seconds(name: str, run: Callable[[str, Path, int], str], tmp_path: Path) -> None:
    report = run(name, tmp_path / "corpus", SECONDS[name])
    assert statistic(report, "number_of_executed_units") > 500  # it does not only start
    assert statistic(report, "new_units_added") > 0  # and changes lead somewhere new


@pytest.mark.soak
@pytest.mark.parametrize("name", SOURCES)
def test_ten_minutes(name: str, run: Callable[[str, Path, int], str], fuzzers: dict[str, Path]) -> None:
    report = run(name, fuzzers[name].parent / f"corpus-{name}", 600)
    print("\n".join(line for line in report.splitlines() if "stat::" in line))
