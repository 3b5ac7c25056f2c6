"""Tells what a processor that is not at hand would make of the quantized kernels' loops, by LLVM's model of it.

    python scripts/kernel_cycles.py avx512 znver4 [--engine FOLDER] [--clang COMMAND] [--mca llvm-mca]
    python scripts/kernel_cycles.py amx sapphirerapids [--engine FOLDER] [--clang COMMAND]

A kernels file is compiled to assembly, and llvm-mca (16 or later knows Zen 4) tells the cycles of each innermost loop
that has dot products: for one token, a group of 256 weights; for many, a block of rows times tokens. The model knows
latencies and ports, and believes that all data is in the nearest cache. --engine takes the sources of another revision.

LLVM's models know nothing of AMX's tiles (19 gives each instruction a quarter of a cycle). For `amx` it is our own
count: what each kind of unit has to do in a round, by the throughputs of Intel's optimization manual, and the busiest
one's cycles. That is a bound that holds if all else overlaps, and no measurement.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mtune=haswell"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))]
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
    "avx512": Kernels("avx512.cc", "x86_64-linux-gnu", AVX512, "vpdpbusd", 64),
    "amx": Kernels("amx.cc", "x86_64-linux-gnu", [*AVX512, "-mamx-tile", "-mamx-int8"], "tdpbssd", 8 * 16 * 32),
}
TILE_PEAK = 16 * 16 * 64 / 16  # products a cycle, of tiles of full depth


def assembly(kernels: Kernels, engine: Path, clang: str) -> list[str]:
    """The lines of the file, compiled as CMakeLists.txt has it."""
    command = [
        *clang.split(),
        f"--target={kernels.target}",
        "-std=gnu++20",
        "-O3",
        "-DNDEBUG",
        "-fPIC",
        "-fno-exceptions",
        "-fno-rtti",
        "-DRWKV_SHARED",
    ]
    command += ["-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", *kernels.flags, "-g0", "-S"]
    command += [f"-I{engine / 'include'}", f"-I{engine / 'src'}", str(engine / "src/kernels/x86" / kernels.file)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "kernels.s"
        done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return out.read_text(encoding="utf-8").splitlines()


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


def tile_cycles(body: list[str]) -> dict[str, float]:
    """Cycles of one round of a loop with tiles, by what each kind of unit of a Sapphire Rapids has to do.

    Tiles have 8 rows. A product takes a cycle for each of them, a load half a cycle, a store one; 512-bit vectors have
    two units, and two loads and one store of 64 bytes a cycle.
    """
    lines = [code for line in body if (code := line.partition("#")[0]).strip()]
    names = [line.split()[0] for line in lines]
    vectors = [line for line in lines if "zmm" in line]
    stored = sum(line.rstrip().endswith(")") for line in vectors)
    return {
        "tiles": 8.0 * names.count("tdpbssd"),
        "vectors": sum(not line.split()[0].startswith(("vmov", "vbroadcast")) for line in vectors) / 2,
        "loads": 4.0 * names.count("tileloadd") + (sum("(" in line for line in vectors) - stored) / 2,
        "stores": 8.0 * names.count("tilestored") + stored,
    }


def tell_tiles(lines: list[str]) -> None:
    """The table of the loops with tiles: two blocks of 32 rows and some tokens in a round of each."""
    print("  line tokens  products   tiles vectors   loads  stores  a cycle  share")
    for at, body in loops(lines):
        if not any("tilestored" in line for line in body):
            continue
        spent, halves = tile_cycles(body), sum("tdpbssd" in line for line in body) // 4
        tokens = sum("vcvtdq2ps" in line for line in body) // (4 * halves)
        done = tokens * 32 * 32 * 2
        speed = done / max(spent.values())
        figures = " ".join(f"{spent[unit]:7.1f}" for unit in ("tiles", "vectors", "loads", "stores"))
        print(f"{at:6} {tokens:6} {done:9} {figures} {speed:8.1f} {speed / TILE_PEAK:6.1%}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cycles of the quantized kernels by LLVM's model of a processor.")
    parser.add_argument("kernels", choices=KERNELS)
    parser.add_argument("processor", help="as llvm-mca calls it: znver4, alderlake, icelake-server, ...")
    parser.add_argument("--engine", type=Path, default=ROOT / "rwkvflow" / "engine")
    parser.add_argument(
        "--clang", default=f"{sys.executable} -m ziglang c++", help="unless given the zig that builds it"
    )
    parser.add_argument("--mca", default="llvm-mca")
    options = parser.parse_args()
    kernels = KERNELS[options.kernels]
    if options.kernels == "amx":
        if options.processor != "sapphirerapids":
            raise SystemExit("of the processors with AMX only sapphirerapids is counted")
        tell_tiles(assembly(kernels, options.engine, options.clang))
        return
    print(f"{'line':>6} {'instructions':>12} {'products':>9} {'cycles':>8} {'a cycle':>8}")
    for at, body in loops(assembly(kernels, options.engine, options.clang)):
        dots = sum(kernels.instruction in line for line in body)
        if dots < 2:
            continue
        spent, products = cycles(body, options.processor, options.mca), dots * kernels.products
        print(f"{at:6} {len(body):12} {products:9} {spent:8.1f} {products / spent:8.1f}")


if __name__ == "__main__":
    main()
