"""Measures conversions against `cp` and `sync` of the same checkpoint, in the same run, on the same disk.

    python scripts/bench_convert.py --engine BUILD_FOLDER [--checkpoint FILE] [--repeat 3] [FORMAT[,FORMAT...] ...]

Each argument is a set of formats that one conversion makes; by default `ggml-f16` alone, the seven plain `ggml-*`, and
all there are. Without --checkpoint a random one of about 0.9 GB is made (version 4, 0.45 B parameters). Prints for each
the best of the repeats in seconds, its ratio to `cp` and `sync`, and the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = tuple(f"ggml-{kind}" for kind in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"))

CONVERT = """
import sys
from pathlib import Path
from rwkvflow.worker.convert import Job, convert
source, engine, out, *formats = sys.argv[1:]
for outcome in convert(Path(source), Path(engine), [Job(f, f, Path(out) / f) for f in formats]):
    if outcome.failure:
        sys.exit(f"{outcome.job.format}: {outcome.failure}")
"""


def timed(argv: list[str]) -> tuple[float, int]:
    """Seconds, and the largest resident set in bytes, of a command that has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    process = subprocess.Popen(argv, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed with exit code {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp` and `sync` of that file."""
    seconds = timed(["cp", str(source), str(target)])[0] + timed(["sync", str(target)])[0]
    target.unlink()
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure conversions against cp and sync.")
    parser.add_argument("--engine", type=Path, required=True, help="folder with lib/librwkv.so, or the library")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for such files")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("formats", nargs="*", help="names joined by commas")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from rwkvflow.worker.formats import FORMATS

    sets = [tuple(text.split(",")) for text in options.formats] or [("ggml-f16",), PLAIN, tuple(FORMATS)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.checkpoint
        if source is None:
            import checkpoints

            print("making a checkpoint", flush=True)
            source = checkpoints.make(Path(folder) / "x.pth", version="4", width=1024, layers=24, vocab=65536)
        timed(["cp", str(source), os.devnull])  # into the page cache, as a download leaves it
        size = source.stat().st_size
        print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, best of {options.repeat}")
        out = Path(folder) / "out"
        for formats in sets:
            copies, runs, peaks = [], [], []
            for _ in range(options.repeat):
                copies.append(copy(source, Path(folder) / "copy"))
                argv = [sys.executable, "-c", CONVERT, str(source), str(options.engine), str(out), *formats]
                seconds, peak = timed(argv)
                runs.append(seconds)
                peaks.append(peak)
                written = sum(path.stat().st_size for path in out.iterdir())
                shutil.rmtree(out)
            name = formats[0] if len(formats) == 1 else f"{len(formats)} formats"
            print(
                f"{name:14} {min(runs):7.2f} s for {written / 1e9:.2f} GB; cp and sync {min(copies):.2f} s; "
                f"ratio {min(runs) / min(copies):.2f}; peak {max(peaks) / 1e6:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
