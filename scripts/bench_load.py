"""What many steps and a large store cost: `python scripts/bench_load.py [plan] [steps] [store] [gc]`.

    plan    a recipe of 10,000 steps: from its text to the plan, and a survey of it against an empty store
    steps   2,000 steps that do nothing, carried out one after another, and what each adds
    store   look-ups in a store of 1,000 and of 1,000,000 finished steps
    gc      cache verify and gc on 20,000 of them, with blobs of a few bytes

Seconds are of the processor where that is what counts, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rwkvflow.base.errors import RwkvflowError  # noqa: E402
from rwkvflow.base.events import Event  # noqa: E402
from rwkvflow.documents.lock import Lock  # noqa: E402
from rwkvflow.execute.base import Job, Made, Product, Work  # noqa: E402
from rwkvflow.execute.local import LocalExecutor  # noqa: E402
from rwkvflow.plan.plan import Plan, survey  # noqa: E402
from rwkvflow.plan.step import Ref, Step, StepLimits  # noqa: E402
from rwkvflow.store.collect import collect, verify  # noqa: E402
from rwkvflow.store.record import Output, Record, record_json  # noqa: E402
from rwkvflow.store.store import Store  # noqa: E402

FORMATS = ("ggml-f16", "ggml-q8_0", "ggml-q5_1", "ggml-q5_0", "ggml-q4_1", "ggml-q4_0", "safetensors", "ggml-f32")


def _said(what: str, value: float, unit: str, most: float | None = None) -> None:
    bound = "" if most is None else f"  (at most {most:g})"
    print(f"{what:<58} {value:10.3f} {unit}{bound}", flush=True)


def bench_plan(steps: int) -> None:
    """Plan about so many steps of a real recipe."""
    from rwkvflow.app.pipeline import make_plan
    from rwkvflow.documents.load import load_workflow, recipe_from_text
    from rwkvflow.plan.matrix import expand
    from rwkvflow.stages.blueprint import Blueprint

    models = steps // (2 * len(FORMATS) + 2)
    text = "name: many\nmodels:\n" + "".join(
        f"  - {{name: m{number}, source: hf://someone/m{number}/m.safetensors, tokenizer: bytes}}\n"
        for number in range(models)
    )
    text += f"formats: [{', '.join(FORMATS)}]\nsmoke: {{prompts: [x]}}\n"
    start = time.process_time()
    recipe = recipe_from_text(text, "many.yaml", ROOT)
    _said("reading the recipe", time.process_time() - start, "s")
    pin = {"sha256": "0" * 64, "size": 1}
    lock = Lock.model_validate(
        {
            "recipe": "0" * 64,
            "models": {
                model.name: {"source": model.source, "resolved": f"{model.source}", **pin} for model in recipe.models
            },
            "images": {
                image.name: {
                    "python": "3.11",
                    "platforms": {"linux-x86_64": {"worker": [], "toolchain": [], "installer": []}},
                }
                for image in recipe.images
            },
            "engine": {"kind": "builtin", "resolved": "builtin", "digest": "sha256:" + "e" * 64},
        }
    )
    start = time.process_time()
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=ROOT / "many.yaml",
        workflow=load_workflow(None),
        workflow_path=ROOT / "many.yaml",
        lock=lock,
        sandbox="host",
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )
    plan = make_plan(blueprint, publishing=False)
    seconds = time.process_time() - start
    _said(f"a plan of {len(plan)} steps", seconds, "s", 2)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        start = time.process_time()
        rows = survey(plan, _Nothing(store))
        _said(f"a survey of it ({len(rows)} rows)", time.process_time() - start, "s")
    _said("memory at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB", 500)


class _Nothing:
    """A store in which nothing is, asked as a run asks it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def digests(self, step: Step, key: str) -> Mapping[str, str] | None:
        record = self.store.lookup(key)
        return None if record is None else {name: output.digest for name, output in record.outputs.items()}

    def intact(self, step: Step, key: str) -> bool:
        return False

    def last(self, step: str) -> Mapping[str, object] | None:
        return self.store.recall("r", step)


def bench_steps(count: int) -> None:
    """Carry out so many steps that write a few bytes."""

    def make(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        found: dict[str, Made | RwkvflowError] = {}
        for job in jobs:
            path = work.folder / "out"
            path.write_text(job.step.id)
            found[job.step.id] = Made({"out": Product(path)})
        return found

    events: list[Event] = []
    limits = StepLimits(cores=1)
    steps = [
        Step(f"s{number}", "test", "make", {"number": number}, {}, ("out",), limits=limits) for number in range(count)
    ]
    inputs = {step.id: Ref(step.id, "out") for step in steps}
    steps.append(Step("all", "test", "make", {}, inputs, ("out",), limits=limits))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for what, most in (("made", 5.0), ("found again", None)):
            executor = LocalExecutor(store, {"make": make}, {}, events.append, run="r", cores=2)
            start, wall = time.process_time(), time.monotonic()
            outcomes = executor.run(Plan(steps, ["all"]))
            seconds, passed = time.process_time() - start, time.monotonic() - wall
            if not all(outcome.ok for outcome in outcomes.values()):
                raise RwkvflowError("a step failed")
            _said(f"{count} steps {what}: of the processor, each", 1000 * seconds / count, "ms", most)
            _said(f"{count} steps {what}: of the clock, each", 1000 * passed / count, "ms")


def _filled(root: Path, count: int) -> Store:
    """A store with so many records; their blobs are not there."""
    store = Store(root)
    text = json.dumps(record_json(Record("convert/x", {"out": Output("sha256:" + "0" * 64, "file", 1)})))
    for number in range(256):
        (root / "index" / f"{number:02x}").mkdir(exist_ok=True)
    first = root / "first.json"
    first.write_text(text)
    for number in range(count):
        key = f"{number * 2654435761 % 2**32:08x}" + f"{number:056x}"
        place = root / "index" / key[:2] / f"{key}.json"
        if number % 50_000 == 0:  # a file has a bounded number of names
            first = place
            first.write_text(text)
        else:
            os.link(first, place)
    return store


def bench_store(most: int) -> None:
    """Look records up in a small store and in a large one."""
    for count in (1000, most):
        with tempfile.TemporaryDirectory(dir=os.environ.get("RWKVFLOW_BENCH_FOLDER")) as folder:
            store = _filled(Path(folder) / "store", count)
            keys = [
                f"{number * 2654435761 % 2**32:08x}" + f"{number:056x}" for number in range(0, count, count // 1000)
            ]
            for what, asked in (("there", keys), ("absent", [key[::-1] for key in keys])):
                start = time.perf_counter()
                for key in asked:
                    store.lookup(key)
                each = 1e6 * (time.perf_counter() - start) / len(asked)
                _said(f"a look-up among {count} steps, {what}", each, "us")
            shutil.rmtree(Path(folder) / "store")


def bench_gc(count: int) -> None:
    """Verify and collect a store of small blobs."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("RWKVFLOW_BENCH_FOLDER")) as folder:
        store = Store(Path(folder) / "store")
        import hashlib

        for number in range(count):
            data = str(number).encode()
            name = hashlib.sha256(data).hexdigest()
            place = store.root / "blobs" / name[:2] / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
        seen: list[object] = []
        actions: dict[str, Callable[[], object]] = {
            "verify": lambda: verify(store, on_entry=seen.append),
            "gc": lambda: collect(store),
        }
        for what, action in actions.items():
            start = time.process_time()
            action()
            _said(f"cache {what} of {count} blobs: each", 1e6 * (time.process_time() - start) / count, "us")


def _chosen(names: Sequence[str]) -> Iterator[Callable[[], None]]:
    known: dict[str, Callable[[], None]] = {
        "plan": lambda: bench_plan(10_000),
        "steps": lambda: bench_steps(2000),
        "store": lambda: bench_store(int(os.environ.get("RWKVFLOW_BENCH_STEPS", "1000000"))),
        "gc": lambda: bench_gc(20_000),
    }
    for name in names or known:
        yield known[name]


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="plan, steps, store, gc; all without")
    for bench in _chosen(parser.parse_args().what):
        bench()


if __name__ == "__main__":
    main()
