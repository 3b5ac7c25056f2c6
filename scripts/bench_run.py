"""Measures a whole `rwkvflow run`, step by step: from nothing but wheels, and once engines and environments are there.

    python scripts/bench_run.py --folder SCRATCH [--width 1024] [--layers 24] [--sandbox host] [FORMATS ...]
                                [--code FOLDER]

The model is a random one of version 7 (0.45 B parameters, bf16, unless a size is given), in a store of its own below
SCRATCH, which keeps the wheels that were downloaded. The run is timed twice: first with nothing else in the store, then
after everything that the model takes part in was forgotten, so that its conversion, reference, smokes and release are
made anew. Smoke has no limits here, since a random model loses more by quantization than a trained one.

Steps of a batch end together, and their seconds count once. Two steps may run at once, so sums may be more than what a
clock shows, which stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rwkvflow.base.files import remove

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("ggml-f16", "ggml-q8_0", "ggml-q5_1", "ggml-q4_0", "safetensors", "gguf-q8_0")
MODEL_STAGES = ("convert", "reference", "smoke", "publish")
RECIPE = """\
name: bench
models:
  - {{name: bench, source: bench.pth, tokenizer: world}}
formats: [{formats}]
smoke: {{limits: {{{limits}}}}}
publish:
  - to: out
"""


def by_step(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """(step or batch, seconds) of what was done, the longest first."""
    batches = {event["step"]: event.get("batch", "") for event in events if event["event"] == "StepStarted"}
    found: dict[str, float] = {}
    for event in events:
        if event["event"] == "StepFinished" and event["status"] == "done":
            name = batches.get(event["step"]) or event["step"]
            found[name] = max(found.get(name, 0.0), float(event["seconds"]))
    return sorted(found.items(), key=lambda item: -item[1])


def forget(store: Path) -> None:
    """Drop the records of all that the model takes part in."""
    for path in (store / "index").glob("*/*.json"):
        if json.loads(path.read_text(encoding="utf-8"))["step"].split("/")[0] in MODEL_STAGES:
            path.unlink()


def run(folder: Path, store: Path, sandbox: str, code: Path) -> list[dict[str, Any]]:
    """The events of one run, which has to succeed."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow", "run", "recipe.yaml", "--sandbox", sandbox, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(code), "RWKVFLOW_STORE": str(store)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the run failed with exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def show(title: str, events: list[dict[str, Any]]) -> None:
    """A table of steps, and the sum of each stage."""
    rows = by_step(events)
    ended = next(event for event in reversed(events) if event["event"] == "RunFinished")
    print(f"\n{title}: {float(ended['seconds']):.1f} s\n")
    stages: dict[str, float] = defaultdict(float)
    for name, seconds in rows:
        stages[name.split("/")[0]] += seconds
        if seconds >= 1:
            print(f"{seconds:9.1f}  {name}")
    print("   " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in sorted(stages.items())))


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Make the model where it is not there, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=FORMATS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--sandbox", default="host")
    parser.add_argument("--code", type=Path, default=ROOT, help="where rwkvflow/ is, such as an unpacked wheel")
    given = parser.parse_args()
    folder, store = given.folder.resolve() / "project", given.folder.resolve() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "bench.pth").exists():
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        from tests.helpers import checkpoints

        partial = folder / "bench.part.pth"
        checkpoints.make(partial, "7", "bf16", layers=given.layers, width=given.width, vocab=65536)
        partial.rename(folder / "bench.pth")
    limits = ", ".join(f"{name}: {{logits: 1e9, perplexity: 1e9}}" for name in given.formats)
    text = RECIPE.format(formats=", ".join(given.formats), limits=limits)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    load = os.getloadavg()[0]
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, load {load:.1f} before; width {given.width}")
    for path in store.glob("*"):
        if path.name != "downloads":
            remove(path)
    show("from nothing but wheels", run(folder, store, given.sandbox, given.code.resolve()))
    forget(store)
    show("with engines and environments there", run(folder, store, given.sandbox, given.code.resolve()))


if __name__ == "__main__":
    main()
