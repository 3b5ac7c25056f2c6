"""Measures what has to stay quick, as ratios to a baseline of the same run: start-up, a run without work, planning;
and what waiting takes of a core.

    python scripts/bench_start.py [--repeat 5]

The baseline is an interpreter that imports pydantic, which every command but --help does. The targets are stated beside
the figures; nothing here fails, for a busy machine is no flaw of the code.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from rwkvflow.base.events import RunStarted, StepStarted
from rwkvflow.base.process import run
from rwkvflow.display.live import LiveDisplay
from rwkvflow.sandbox.isolation.memory import MemoryLimit

ROOT = Path(__file__).resolve().parents[1]
FORMATS = "ggml-f32 ggml-f16 ggml-q8_0 ggml-q5_1 ggml-q5_0 ggml-q4_1 ggml-q4_0 safetensors safetensors-f16 web-rwkv"
PLAN = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests/unit")
start = time.perf_counter()
from test_recipes import stand_in
from rwkvflow.documents.load import load_recipe, load_workflow
from rwkvflow.app.pipeline import make_plan
from rwkvflow.plan.matrix import expand
from rwkvflow.stages.blueprint import Blueprint
path = Path(sys.argv[1])
recipe = load_recipe(path)
plan = make_plan(Blueprint(recipe=recipe, recipe_path=path, workflow=load_workflow(None), workflow_path=path,
                           lock=stand_in(recipe), sandbox="host", platform="linux-x86_64",
                           artifacts=tuple(expand(recipe))))
assert len(plan) > 20000
"""


def best(argv: list[str], times: int, env: dict[str, str]) -> float:
    """Seconds of the quickest of several runs of a command that has to succeed."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - start)
    return min(found)


def many(path: Path) -> Path:
    """A recipe of 1,000 models in 10 formats."""
    models = "".join(
        f"  - {{name: m{number}, source: 'hf://BlinkDL/x/m{number}.pth', tokenizer: world}}\n" for number in range(1000)
    )
    formats = ", ".join(FORMATS.split())
    path.write_text(f"name: many\nmodels:\n{models}formats: [{formats}]\npublish: [{{to: out}}]\n", encoding="utf-8")
    return path


def waiting(seconds: float) -> float:
    """The share of a core that this process takes while a command runs that says nothing: the bars, the watch."""
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=80))
    display(RunStarted("r.yaml", "host", "asked for", 4))
    for name in "abc":
        display(StepStarted(name, "smoke", "never run"))
    with MemoryLimit(1 << 40, threading.Event()) as limit:
        began, cpu = time.perf_counter(), time.process_time()
        run([sys.executable, "-c", f"import time; time.sleep({seconds})"], cancel=limit, preexec=limit.remember)
        used = (time.process_time() - cpu) / (time.perf_counter() - began)
    display.close()
    return used


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure start-up, a run without work, and planning.")
    parser.add_argument("--repeat", type=int, default=5)
    times = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RWKVFLOW_STORE": f"{folder}/store", "CI": "1"}
        flow = [sys.executable, "-m", "rwkvflow"]
        shutil.copytree(ROOT / "recipes" / "demo", Path(folder) / "recipes" / "demo")
        demo = shutil.copy(ROOT / "recipes" / "demo.yaml", Path(folder) / "recipes")
        subprocess.run([*flow, "run", str(demo), "--sandbox", "host"], cwd=ROOT, env=env, check=True)
        base = best([sys.executable, "-c", "import pydantic"], times, env)
        rows = [
            ("rwkvflow --help", [*flow, "--help"], 0.2),
            ("run without work, host", [*flow, "run", str(demo), "--sandbox", "host"], 0.5),
            ("run without work, auto", [*flow, "run", str(demo)], 0.5),
            (
                "plan 1,000 models x 10 formats",
                [sys.executable, "-c", PLAN, str(many(Path(folder) / "many.yaml"))],
                2.0,
            ),
        ]
        print(f"baseline: python -c 'import pydantic' takes {base:.3f} s")
        for name, argv, target in rows:
            seconds = best(argv, times, env)
            print(f"{name:<32} {seconds:6.3f} s  {seconds / base:5.1f} x baseline  (target {target} s)")
        print(f"{'waiting for a command':<32} {waiting(10):6.2%} of a core  (target 1%)")


if __name__ == "__main__":
    main()
