"""How much of 1, 2 and 4 workers' time is work: `python scripts/bench_workers.py [sleep] [compute] [demo]`.

    sleep    steps that wait for a known time, so that what is lost is the scheduling, the claims and the store
    compute  steps that use a known time of the processor; with more workers than cores, they share those
    demo     `rwkvflow work` on the demo's recipe: real conversions, references and smoke tests, each worker with a
             store of its own, in which environment and engine are there already
    dask     the same with `rwkvflow run --executor dask=N`, whose workers have the store of the run

--workers says how many of them, --base a folder in which environment and engine are kept for the next time.
Workers are processes that share a folder as their remote store. The ideal is the work, spread over the workers, or over
the cores where steps compute and there are fewer of those; for the demo, what one worker takes without a remote store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rwkvflow.base.errors import RwkvflowError  # noqa: E402
from rwkvflow.execute.base import Job, Made, Product, Work  # noqa: E402
from rwkvflow.execute.local import LocalExecutor  # noqa: E402
from rwkvflow.plan.plan import Plan  # noqa: E402
from rwkvflow.plan.step import Step, StepLimits  # noqa: E402
from rwkvflow.store.remote import Remote  # noqa: E402
from rwkvflow.store.store import Store  # noqa: E402

WORKERS = (1, 2, 4)
STEPS, SECONDS = 64, 0.5
CORES = len(os.sched_getaffinity(0))


def _row(what: str, workers: int, wall: float, ideal: float) -> None:
    print(
        f"{what:<8} {workers:>2} workers  {wall:7.2f} s  ideal {ideal:7.2f} s  {100 * ideal / wall:5.1f} %", flush=True
    )


def _waits() -> None:
    time.sleep(SECONDS)


def _computes() -> None:
    end = time.process_time() + SECONDS
    while time.process_time() < end:
        sum(range(10_000))


def _worker(root: Path, remote: Path, plan: Plan, action: Callable[[], None]) -> None:
    """Carry out what nobody else has claimed; in a process of its own."""

    def make(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        found: dict[str, Made | RwkvflowError] = {}
        for job in jobs:
            action()
            path = work.folder / job.step.id
            path.write_text(job.step.id)
            found[job.step.id] = Made({"out": Product(path)})
        return found

    store = Store(root)
    store.remote = shared = Remote(f"file://{remote}", print)
    executor = LocalExecutor(store, {"sandbox": make}, {}, lambda event: None, run="r", cores=1, leases=shared.leases())
    with store.using():
        outcomes = executor.run(plan)
    if not all(outcome.ok for outcome in outcomes.values()):
        raise RwkvflowError("a step failed")


def bench_steps(what: str, action: Callable[[], None], most: int | None, numbers: Sequence[int]) -> None:
    """Steps of a known length, by several workers."""
    limits = StepLimits(cores=1)
    steps = [Step(f"s{n}", "test", "sandbox", {"n": n}, {}, ("out",), limits=limits) for n in range(STEPS)]
    plan = Plan(steps, [step.id for step in steps])
    for workers in numbers:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            children = []
            for number in range(workers):
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        _worker(Path(folder) / f"store{number}", Path(folder) / "remote", plan, action)
                        code = 0
                    finally:
                        os._exit(code)
                children.append(child)
            if any(os.waitpid(child, 0)[1] for child in children):
                raise RwkvflowError("a worker failed")
            _row(what, workers, time.monotonic() - start, STEPS * SECONDS / min(workers, most or workers))


def bench_demo(what: str, numbers: Sequence[int], base: Path) -> None:
    """The demo's recipe, by several workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "recipes" / "demo", folder / "recipes" / "demo")
        shutil.copy(ROOT / "recipes" / "demo.yaml", folder / "recipes")
        recipe = "recipes/demo.yaml"
        program = [sys.executable, "-m", "rwkvflow"]

        def run(store: Path, *arguments: str) -> subprocess.Popen[bytes]:
            env = {**os.environ, "RWKVFLOW_STORE": str(store), "PYTHONPATH": str(ROOT), "CI": "1"}
            command = [*program, *arguments, "--sandbox", "host"]
            return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def wait(processes: Sequence[subprocess.Popen[bytes]]) -> float:
            start = time.monotonic()
            for process in processes:
                _, told = process.communicate()
                if process.returncode:
                    raise RwkvflowError(told.decode(errors="replace")[-2000:])
            return time.monotonic() - start

        def machine(number: int | str) -> Path:
            """A store with environment and engine alone."""
            store = folder / f"store{number}"
            shutil.rmtree(store, ignore_errors=True)
            for part in ("downloads", "blobs", "trees", "index", "external"):
                shutil.copytree(base / part, store / part, copy_function=os.link)
            (store / "environments").symlink_to(base / "environments")
            return store

        wait([run(base, "engine", "build", recipe)])
        alone = wait([run(machine("alone"), "run", recipe, "--locked")])
        _row("alone", 1, alone, alone)
        for workers in numbers:
            ideal = alone / min(workers, CORES)
            if what == "dask":
                run_ = run(machine("dask"), "run", recipe, "--locked", "--executor", f"dask={workers}")
                _row(what, workers, wait([run_]), ideal)
                continue
            remote = folder / f"remote{workers}"
            stores = [machine(number) for number in range(workers)]
            seconds = wait([run(store, "work", recipe, "--locked", "--remote", f"file://{remote}") for store in stores])
            _row(what, workers, seconds, ideal)


def main() -> None:
    """Run what is named."""
    known = ("sleep", "compute", "demo", "dask")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*known, []], help="all without")
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)), help="how many; default: %(default)s")
    parser.add_argument("--base", type=Path, help="a store that is kept, with environment and engine")
    options = parser.parse_args()
    numbers = [int(word) for word in options.workers.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.what or known:
            if name == "sleep":
                bench_steps(name, _waits, None, numbers)
            elif name == "compute":
                bench_steps(name, _computes, CORES, numbers)
            else:
                bench_demo(name, numbers, (options.base or Path(scratch) / "base").absolute())


if __name__ == "__main__":
    main()
