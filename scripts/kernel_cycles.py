"""Tells what a processor that is not at hand would make of the quantized kernels' loops, by LLVM's model of it.

    python scripts/kernel_cycles.py avx512 znver4 [--engine FOLDER] [--clang clang++] [--mca llvm-mca]

A kernels file is compiled to assembly, and llvm-mca (16 or later knows Zen 4) tells the cycles of each innermost loop
that has dot products: for one token, a group of 256 weights; for many, a block of rows times tokens. The model knows
latencies and ports, and believes that all data is in the nearest cache. --engine takes the sources of another revision.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mtune=haswell"]
ROUNDS = 200


@dataclass(frozen=True)
class Kernels:
    """Their file, the target and flags it is compiled with, and how many products its instruction has."""

    file: str
    target: str
    flags: list[str]
    instruction: str
    products: int


KERNELS = {
    "avx2": Kernels("avx2.cc", "x86_64-linux-gnu", AVX2, "vpmaddubsw", 32),
    "avxvnni": Kernels("avxvnni.cc", "x86_64-linux-gnu", [*AVX2, "-mavxvnni"], "vpdpbusd", 32),
    "avx512": Kernels(
        "avx512.cc",
        "x86_64-linux-gnu",
        [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))],
        "vpdpbusd",
        64,
    ),
}


def assembly(kernels: Kernels, engine: Path, clang: str) -> list[str]:
    """The lines of the file, compiled as CMakeLists.txt has it."""
    command = [
        clang,
        f"--target={kernels.target}",
        "-std=gnu++20",
        "-O3",
        "-DNDEBUG",
        "-fPIC",
        "-fno-exceptions",
        "-fno-rtti",
    ]
    command += ["-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", *kernels.flags, "-S", "-o", "-"]
    command += [f"-I{engine / 'include'}", f"-I{engine / 'src'}", str(engine / "src/kernels/x86" / kernels.file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()


def loops(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Each innermost loop: the number of its first line, and its instructions."""
    labels = {match[1]: at for at, line in enumerate(lines) if (match := re.match(r"(\.LBB\w+):", line))}
    for at, line in enumerate(lines):
        jump = re.match(r"\s+j\w+\s+(\.LBB\w+)", line)
        if jump is None or labels.get(jump[1], at) >= at:
            continue
        body = lines[labels[jump[1]] + 1 : at + 1]
        if not any(each.startswith(".LBB") for each in body):
            yield labels[jump[1]], [each for each in body if not each.strip().startswith((".", "#"))]


def cycles(body: list[str], processor: str, mca: str) -> float:
    """The cycles of one round of the loop, in a long run of it."""
    command = [mca, f"-mcpu={processor}", f"-iterations={ROUNDS}"]
    done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        raise SystemExit(f"{mca}: {done.stderr[:300]}")
    return int(found[1]) / ROUNDS


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cycles of the quantized kernels by LLVM's model of a processor.")
    parser.add_argument("kernels", choices=KERNELS)
    parser.add_argument("processor", help="as llvm-mca calls it: znver4, alderlake, icelake-server, ...")
    parser.add_argument("--engine", type=Path, default=ROOT / "rwkvflow" / "engine")
    parser.add_argument("--clang", default="clang++")
    parser.add_argument("--mca", default="llvm-mca")
    options = parser.parse_args()
    kernels = KERNELS[options.kernels]
    print(f"{'line':>6} {'instructions':>12} {'products':>9} {'cycles':>8} {'a cycle':>8}")
    for at, body in loops(assembly(kernels, options.engine, options.clang)):
        dots = sum(kernels.instruction in line for line in body)
        if dots < 2:
            continue
        spent, products = cycles(body, options.processor, options.mca), dots * kernels.products
        print(f"{at:6} {len(body):12} {products:9} {spent:8.1f} {products / spent:8.1f}")


if __name__ == "__main__":
    main()
