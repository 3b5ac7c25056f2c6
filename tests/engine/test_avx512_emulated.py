"""The kernels for AVX-512 and AVX-VNNI where this machine's processor has neither: on one that Bochs emulates."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from tests.engine import bochs, emulators, librwkv
from tests.helpers import checkpoints

CPU = "corei7_icelake_u"  # AVX-512 with VNNI; none that Bochs 2.7 knows has AVX-VNNI, which bare_machine.c adds
KERNELS = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}, "avxvnni": {"avx_vnni"}}
VERSIONS = ("4", "5.2", "6", "7")
TOKENS = [str(int(t)) for t in np.random.default_rng(11).integers(0, 101, 37)]
EVEN = {"layers": 2, "width": 128, "vocab": 101, "head_size": 32}
ODD = {"layers": 2, "width": 120, "vocab": 101, "head_size": 40}  # rests everywhere, as in test_librwkv.py
SMALL = {"layers": 1, "width": 128, "vocab": 101, "head_size": 32}

Emulated = Callable[..., tuple[int, bytes]]


def lacking(kernels: str) -> pytest.MarkDecorator:
    """For tests of what other tests do where the processor itself runs these kernels."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    reason = f"this machine's processor runs the {kernels} kernels itself, in test_librwkv.py"
    return pytest.mark.skipif(flags >= KERNELS[kernels], reason=reason)


@pytest.fixture(scope="module")
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """emulated(program, *arguments, files=, environment=) -> exit code and output."""
    emulators.find(bochs.PACKAGES, "bochs")  # before anything is built
    built = librwkv.static(request.config)
    scratch = tmp_path_factory.mktemp("bochs")
    image = bochs.rom(scratch)

    def run(
        program: str, *arguments: str, files: tuple[Path, ...] = (), environment: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        return bochs.run(image, built / program, arguments, files, CPU, scratch, environment)

    return run


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


def make(folder: Path, version: str, kind: str, library: Path, size: dict[str, Any]) -> Path:
    source, model = checkpoints.make(folder / f"{version}.pth", version, **size), folder / f"{version}-{kind}.bin"
    (outcome,) = convert(source, library, [ConversionJob("x", f"ggml-{kind}", model)])
    assert outcome.failure is None, outcome.failure
    return model


@pytest.mark.parametrize("extent", ["quick", pytest.param("all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("kernels", [pytest.param(kernels, marks=lacking(kernels)) for kernels in KERNELS])
def test_kernels_multiply_right(kernels: str, extent: str, emulated: Emulated, library: Path) -> None:
    words = ["quick"] if extent == "quick" else []
    code, output = emulated("rwkv-check", kernels, *words, *(["lent"] if kernels == "avxvnni" else []))
    assert code == 0, output
    assert int(output.split(b"ok ")[1]) > (500 if extent == "quick" else 3000)
    # And every bit is that of this machine's own kernels.
    done = subprocess.run([library.parent / "rwkv-check", "avx2", *words], capture_output=True, check=True)
    assert digest(output, kernels) == digest(done.stdout, "avx2")


def digest(output: bytes, kernels: str) -> bytes:
    (found,) = re.findall(rb"(?m)^%s: bits ([0-9a-f]{16})$" % kernels.encode(), output)
    return bytes(found)


@lacking("avx512")
def test_what_the_emulated_processor_cannot_run_is_told(emulated: Emulated) -> None:
    code, output = emulated("rwkv-check", "neon", "quick")
    assert (code, output.splitlines()[0][:21]) == (1, b"neon: cannot run here")
    code, output = emulated("rwkv", "info")
    assert code == 0
    assert b"KERNELS=avx512" in output


# F16 with odd sizes, the others with even ones.
@lacking("avx512")
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q5_1", "q4_k"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_gives_the_logits_of_other_kernels(
    version: str, kind: str, emulated: Emulated, library: Path, tmp_path: Path
) -> None:
    model = make(tmp_path, version, kind, library, ODD if kind == "f16" else EVEN)
    code, output = emulated(
        "rwkv", "eval", model.name, *TOKENS, "--logits", "out", files=(model,), environment={"RWKV_KERNELS": "avx512"}
    )
    assert code == 0, output
    command: list[str | Path] = [library.parent / "rwkv", "eval", model, *TOKENS, "--logits", tmp_path / "wanted"]
    subprocess.run(command, check=True, env={**os.environ, "RWKV_KERNELS": "avx2"})
    got, wanted = np.frombuffer(output, "<f4"), np.fromfile(tmp_path / "wanted", "<f4")
    assert np.abs(wanted).max() > 0.1, "logits that say something"
    assert got.tobytes() == wanted.tobytes()


@lacking("avx512")
@pytest.mark.parametrize("kind", ["q5_1", "q8_0", "q4_k"])
def test_a_file_is_quantized_to_the_same_bytes(kind: str, emulated: Emulated, library: Path, tmp_path: Path) -> None:
    model, wanted = make(tmp_path, "7", "f32", library, SMALL), tmp_path / "wanted"
    code, output = emulated("rwkv", "quantize", model.name, "out", kind.upper(), files=(model,))
    assert code == 0, output[:200]
    subprocess.run([library.parent / "rwkv", "quantize", model, wanted, kind.upper()], check=True)
    assert output == wanted.read_bytes()
