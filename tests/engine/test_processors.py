"""Verdicts and artifacts do not depend on the processor: tests of them pass with its features switched off.

torch, MKL, oneDNN, OpenBLAS, numpy and glibc choose their arithmetic by the processor, and each has a variable that
makes it take a lesser one. All of them at once on the tests that compare most closely; one by one, and on all tests of
what converts and judges, with RWKVFLOW_SOAK=1.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What decides a verdict by bits, or by a bound on them.
CLOSE = ("tests/unit/worker/model/test_exact.py", "tests/unit/worker/formats/test_chatrwkv_close.py")
ALL = (
    *(f"tests/unit/worker/{room}" for room in ("model", "formats", "smoke", "write")),
    "tests/engine/test_consumers.py",
)
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are for x86-64")


def numpy_without(*kept: str) -> str:
    """All that this numpy chooses by the processor, but what is `kept`."""
    from numpy._core._multiarray_umath import __cpu_dispatch__  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return " ".join(name for name in __cpu_dispatch__ if name not in kept)


def lesser() -> dict[str, dict[str, str]]:
    """Variables by what they switch off."""
    wide = "-AVX512F,-AVX512VL,-AVX512BW"
    return {
        "torch without AVX2": {"ATEN_CPU_CAPABILITY": "default"},
        "torch without AVX-512": {"ATEN_CPU_CAPABILITY": "avx2"},
        "MKL as on AMD": {"MKL_CBWR": "COMPATIBLE"},
        "MKL without AVX2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        "MKL without AVX-512": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        "oneDNN without AVX2": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        "numpy without AVX2": {"NPY_DISABLE_CPU_FEATURES": numpy_without()},
        "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": numpy_without("X86_V3", "AVX2", "FMA3")},
        "glibc without AVX2": {"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={wide},-AVX2,-FMA,-FMA4"},
        "glibc without AVX-512": {"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={wide}"},
        "OpenBLAS of 2004": {"OPENBLAS_CORETYPE": "Prescott"},
        "OpenBLAS of 2013": {"OPENBLAS_CORETYPE": "Haswell"},
    }


def passes(variables: dict[str, str], *tests: str) -> None:
    """Raises AssertionError where the tests do not pass in a process with these variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not soak", "-p", "no:randomly", *tests]
    env = {**os.environ, **variables}
    env.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{variables}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    assert " passed" in done.stdout


def test_the_closest_comparisons_hold_on_the_least_processor() -> None:
    least = {name: value for _, one in reversed(lesser().items()) for name, value in one.items()}
    passes(least, *CLOSE)


@pytest.mark.soak
@pytest.mark.parametrize("what", lesser())
def test_what_converts_and_judges_holds_without(what: str) -> None:
    passes(lesser()[what], *ALL)
