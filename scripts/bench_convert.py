"""Measures conversions against `cp` and `sync` of the same checkpoint, in the same run, on the same disk.

    python scripts/bench_convert.py --engine BUILD_FOLDER [--checkpoint FILE ...] [--repeat 5] [FORMATS ...]

FORMATS are formats that one conversion makes, joined by commas, or one of `plain` (the seven plain `ggml-*`),
`ggml+gguf` (all of both) and `all`; by default `ggml-f16` and these three. Without --checkpoint, random ones of version
7 with 0.45 B and 1.5 B parameters are made, of 0.9 and 3.1 GB. Formats that cannot hold the version are left out.

Copies and conversions take turns, after one of each that is not counted (a virtual machine gets its memory when it
is first touched, which takes longer than to write to it). Medians are told, and then whether each target is met.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = tuple(f"ggml-{kind}" for kind in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"))
SETS = ("ggml-f16", "plain", "ggml+gguf", "all")
SIZES = {"0.45 B": 1024, "1.5 B": 2048}  # width of 24 layers

# Targets. The seven plain formats are to be made 2.5 times as fast as rwkv.cpp's converter and quantizer make them one
# after another on two cores: 3 to 5 s each for F32 and F16, 1.2 to 1.9 s for each quantization of 0.45 B parameters.
MOST_COPIES = 2.0  # times `cp` and `sync`, for ggml-f16
PLAIN_SECONDS = 15 / 2.5
SMALL = 1.2e9  # bytes of a checkpoint that this holds for
F16_MEMORY = 300e6
MEMORY = 1e9
ONE_READ = 1.01  # bytes read by the bytes of the checkpoint

CONVERT = """
import sys
from pathlib import Path
from rwkvflow.worker.conversion.convert import ConversionJob, convert

def read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])

source, engine, out, *formats = sys.argv[1:]
before = read()
for outcome in convert(Path(source), Path(engine), [ConversionJob(f, f, Path(out) / f) for f in formats]):
    if outcome.failure:
        sys.exit(f"{outcome.job.format}: {outcome.failure}")
print(read() - before)
"""


@dataclass(frozen=True)
class Run:
    """One command: seconds, largest resident set in bytes, what it printed."""

    seconds: float
    memory: int
    output: str = ""


def timed(argv: list[str]) -> Run:
    """Run a command that has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(argv, env=environment, stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed with exit code {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024, output)


def copy(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of `cp`, and of `sync`, of that file."""
    seconds = timed(["cp", str(source), str(target)]).seconds, timed(["sync", str(target)]).seconds
    target.unlink()
    return seconds


@dataclass(frozen=True)
class Measured:
    """Medians of one set of formats. `checkpoint` and `read` in bytes; `memory` is the largest of all runs."""

    name: str
    formats: tuple[str, ...]
    checkpoint: int
    seconds: float
    cp: float
    cp_and_sync: float
    written: int
    memory: int
    read: int

    def show(self) -> None:
        """A line for people."""
        name = self.name + (f" ({len(self.formats)})" if len(self.formats) > 1 else "")
        print(
            f"  {name:14} {self.seconds:6.2f} s for {self.written / 1e9:5.2f} GB; "
            f"cp {self.cp:.2f} s, with sync {self.cp_and_sync:.2f} s; "
            f"ratios {self.seconds / self.cp:.2f} and {self.seconds / self.cp_and_sync:.2f}; "
            f"peak {self.memory / 1e6:.0f} MB; read {self.read / self.checkpoint:.4f} of it",
            flush=True,
        )

    def targets(self) -> list[tuple[str, bool]]:
        """(what is wanted and what there is, whether it is met)."""
        where = f"{self.name} of {self.checkpoint / 1e9:.2f} GB"
        memory = F16_MEMORY if self.name == "ggml-f16" else MEMORY
        out = [(f"{where}: {self.memory / 1e6:.0f} MB, below {memory / 1e6:.0f}", self.memory < memory)]
        if self.name == "ggml-f16":
            copies = self.seconds / self.cp_and_sync
            out.append((f"{where}: {copies:.2f} times cp and sync, at most {MOST_COPIES}", copies <= MOST_COPIES))
        if self.name == "plain" and self.checkpoint < SMALL:
            out.append((f"{where}: {self.seconds:.2f} s, at most {PLAIN_SECONDS:.0f}", self.seconds <= PLAIN_SECONDS))
        if self.name == "ggml+gguf":
            share = self.read / self.checkpoint
            out.append((f"{where}: read {share:.4f} times, at most {ONE_READ}", share <= ONE_READ))
        return out


def measure(name: str, formats: tuple[str, ...], source: Path, engine: Path, folder: Path, repeat: int) -> Measured:
    """Turns of copying and converting."""
    out = folder / "out"
    argv = [sys.executable, "-c", CONVERT, str(source), str(engine), str(out), *formats]
    copies, runs = [], []
    for _ in range(repeat + 1):
        copies.append(copy(source, folder / "copy"))
        runs.append(timed(argv))
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
    return Measured(
        name,
        formats,
        source.stat().st_size,
        statistics.median(run.seconds for run in runs[1:]),
        statistics.median(cp for cp, _ in copies[1:]),
        statistics.median(cp + sync for cp, sync in copies[1:]),
        written,
        max(run.memory for run in runs),
        int(runs[-1].output),
    )


def holding(name: str, source: Path) -> tuple[tuple[str, ...], int]:
    """The formats of a set that can hold the checkpoint, and the bytes that they take."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.read.open import open_checkpoint

    families = tuple(f for f in FORMATS if f.startswith(("ggml-", "gguf-")))
    named = {"plain": PLAIN, "ggml+gguf": families, "all": tuple(FORMATS)}
    with open_checkpoint(source) as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
        items = [FORMATS[f] for f in named.get(name, name.split(",")) if FORMATS[f].refuse(architecture) is None]
        size = sum(item.expected_size(architecture, checkpoint.tensors) for item in items)
    return tuple(item.name for item in items), size


def random_checkpoints(folder: Path) -> list[Path]:
    """One of each size."""
    from tests.helpers import checkpoints

    made = []
    for label, width in SIZES.items():
        print(f"making a checkpoint of {label} parameters", flush=True)
        path = folder / f"{width}.pth"
        made.append(checkpoints.make(path, version="7", width=width, layers=24, vocab=65536))
    return made


def bench(source: Path, sets: Sequence[str], engine: Path, folder: Path, repeat: int) -> list[tuple[str, bool]]:
    """All sets of one checkpoint: their targets."""
    timed(["cp", str(source), os.devnull])  # into the page cache, as a download leaves it
    size = source.stat().st_size
    print(f"{source.name}: {size / 1e9:.2f} GB, {os.cpu_count()} cores, medians of {repeat}")
    targets = []
    for name in sets:
        formats, needed = holding(name, source)
        if needed + size > shutil.disk_usage(folder).free:
            targets.append((f"{name} of {size / 1e9:.2f} GB: no room for {(needed + size) / 1e9:.0f} GB", False))
            continue
        measured = measure(name, formats, source, engine, folder, repeat)
        measured.show()
        targets += measured.targets()
    return targets


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure conversions against cp and sync.")
    parser.add_argument("--engine", type=Path, required=True, help="folder with lib/librwkv.so, or the library")
    parser.add_argument("--checkpoint", type=Path, action="append", help="may be given more than once")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for such files")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("formats", nargs="*", help=f"names joined by commas, or {', '.join(SETS[1:])}")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        targets = []
        for source in options.checkpoint or random_checkpoints(folder):
            targets += bench(source, options.formats or SETS, options.engine, folder, options.repeat)
    print("targets")
    for text, met in targets:
        print(f"  {'met' if met else 'NOT MET':7}  {text}")


if __name__ == "__main__":
    main()
