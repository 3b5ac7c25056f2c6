"""What many steps and a large store cost: `python scripts/bench_load.py [plan] [steps] [store]`.

    plan    a recipe of 10,000 steps: from its text to the plan, and a survey of it against an empty store
    steps   2,000 steps that do nothing, carried out one after another, and what each adds
    store   questions to a store, and to a remote one, of 1,000 and of 1,000,000 finished steps and blobs
            (RWKVFLOW_BENCH_STEPS, RWKVFLOW_BENCH_FOLDER), then cache verify and gc of it, with the memory they take

Seconds are of the processor where that is what counts, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import hashlib
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
from rwkvflow.store.remote import Remote  # noqa: E402
from rwkvflow.store.store import Store  # noqa: E402

FORMATS = ("ggml-f16", "ggml-q8_0", "ggml-q5_1", "ggml-q5_0", "ggml-q4_1", "ggml-q4_0", "safetensors", "ggml-f32")


def _said(what: str, value: float, unit: str, most: float | None = None) -> None:
    bound = "" if most is None else f"  (at most {most:g})"
    print(f"{what:<58} {value:10.3f} {unit}{bound}", flush=True)


def many_models(models: int) -> tuple[str, Lock]:
    """A recipe of so many models in eight formats, and its lock."""
    from rwkvflow.documents.load import recipe_from_text

    text = "name: many\nmodels:\n" + "".join(
        f"  - {{name: m{number}, source: hf://someone/m{number}/m.safetensors, tokenizer: bytes}}\n"
        for number in range(models)
    )
    text += f"formats: [{', '.join(FORMATS)}]\nsmoke: {{prompts: [x]}}\n"
    recipe = recipe_from_text(text, "many.yaml", ROOT)
    lock = Lock.model_validate(
        {
            "recipe": "0" * 64,
            "models": {
                model.name: {"source": model.source, "resolved": model.source, "sha256": f"{number:064x}", "size": 1}
                for number, model in enumerate(recipe.models)
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
    return text, lock


def plan_of(text: str, lock: Lock) -> Plan:
    """The plan of such a recipe, without publishing."""
    from rwkvflow.app.pipeline import make_plan
    from rwkvflow.documents.load import load_workflow, recipe_from_text
    from rwkvflow.plan.matrix import expand
    from rwkvflow.stages.blueprint import Blueprint

    recipe = recipe_from_text(text, "many.yaml", ROOT)
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
    return make_plan(blueprint, publishing=False)


def bench_plan(steps: int) -> None:
    """Plan about so many steps of a real recipe."""
    text, lock = many_models(steps // (2 * len(FORMATS) + 2))
    start = time.process_time()
    plan = plan_of(text, lock)
    seconds = time.process_time() - start
    _said(f"from a recipe's text to a plan of {len(plan)} steps", seconds, "s", 2)
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


def fill(root: Path, count: int) -> Store:
    """A store of so many finished steps, each with a blob of a few bytes. A remote store looks alike."""
    store = Store(root)
    for number in range(256):
        for folder in ("index", "blobs"):
            (root / folder / f"{number:02x}").mkdir(exist_ok=True)
    for number in range(count):
        data = b"%d" % number
        name, key = hashlib.sha256(data).hexdigest(), key_number(number)
        record = Record("convert/x", {"out": Output(f"sha256:{name}", "file", len(data))})
        text = json.dumps({"key": key, **record_json(record)}).encode()
        for path, content in (
            (f"{root}/blobs/{name[:2]}/{name}", data),
            (f"{root}/index/{key[:2]}/{key}.json", text),
        ):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o444)
            os.write(handle, content)
            os.close(handle)
    return store


def key_number(number: int) -> str:
    """The key of a step of such a store."""
    return hashlib.sha256(b"step %d" % number).hexdigest()


def asked(store: Store, count: int) -> dict[str, float]:
    """Seconds of the processor for each kind of question to a filled store and to a remote one, each of 500."""
    numbers = range(0, count, max(1, count // 500))
    outputs = [Output(f"sha256:{hashlib.sha256(b'%d' % n).hexdigest()}", "file", len(str(n))) for n in numbers]
    keys = [key_number(number) for number in numbers]
    remote = Remote(f"file://{store.root}", print)
    remote._missing_for_s = 0.0
    kinds: dict[str, Callable[[int], object]] = {
        "look up a step": lambda n: store.lookup(keys[n]),
        "look up a step that is not there": lambda n: store.lookup(keys[n][::-1]),
        "is a blob there": lambda n: store.present(outputs[n]),
        "put a blob": lambda n: _put(store, n),
        "record a step": lambda n: store.record(keys[n][::-1], Record("convert/x", {"out": outputs[n]})),
        "remote: look up a step": lambda n: remote.lookup(keys[n]),
        "remote: look up a step that is not there": lambda n: remote.lookup(keys[n][1:] + "0"),
        "remote: is a blob there": lambda n: remote.has(outputs[n]),
    }
    found = {}
    for what, question in kinds.items():
        question(0)
        times = []
        for part in range(5):  # the best fifth: others use the machine too
            start = time.process_time()
            for n in range(part * len(keys) // 5, (part + 1) * len(keys) // 5):
                question(n)
            times.append((time.process_time() - start) / (len(keys) // 5))
        found[what] = min(times)
    return found


def _put(store: Store, number: int) -> None:
    with store.scratch() as folder:
        (folder / "x").write_bytes(b"new %d" % number)
        store.put_file(folder / "x")


def bench_store(most: int) -> None:
    """Ask a small store and a large one."""
    few: dict[str, float] = {}
    for count in (1000, most):
        with tempfile.TemporaryDirectory(dir=os.environ.get("RWKVFLOW_BENCH_FOLDER")) as folder:
            start = time.monotonic()
            store = fill(Path(folder) / "store", count)
            print(f"{count} finished steps, written in {time.monotonic() - start:.0f} s")
            many = asked(store, count)
            for what, seconds in many.items():
                bound = f"  ({seconds / few[what]:.2f} times as long as among 1000)" if few else ""
                print(f"  {what:<44} {1e6 * seconds:8.0f} µs{bound}", flush=True)
            few = few or many
            if count == most:
                look_after(store, count)
                shutil.rmtree(Path(folder) / "store")


def look_after(store: Store, count: int) -> dict[str, float]:
    """Verify and collect a store, a tenth of whose records is gone; bytes of memory for each blob, by command."""
    for number in range(0, count, 10):
        key = key_number(number)
        (store.root / "index" / key[:2] / f"{key}.json").unlink()
    memory = {}
    actions: dict[str, Callable[[], object]] = {
        "verify": lambda: verify(store),
        "gc --dry-run": lambda: collect(store, dry_run=True),
        "gc --max-size": lambda: collect(store, max_bytes=1 << 40, dry_run=True),
        "gc": lambda: collect(store),
    }
    for what, action in actions.items():
        seconds, size = _measured(action)
        memory[what] = size / count
        _said(f"cache {what} of {count} blobs: of the processor", seconds, "s")
        _said(f"cache {what} of {count} blobs: each", 1e6 * seconds / count, "us")
        _said(f"cache {what} of {count} blobs: memory, each", memory[what], "bytes")
    return memory


def _measured(action: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the processor, and how many bytes of memory more, in a child."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        code = 1
        try:
            started = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
            before = resource.getrusage(resource.RUSAGE_SELF)
            kept = action()
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            os.write(writing, f"{seconds} {(after.ru_maxrss - started) * 1024}".encode())
            del kept
            code = 0
        finally:
            os._exit(code)
    _, status = os.wait()
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    if status:
        raise RwkvflowError("looking after the store failed")
    took, size = text.split()
    return float(took), int(size)


def _chosen(names: Sequence[str]) -> Iterator[Callable[[], None]]:
    known: dict[str, Callable[[], None]] = {
        "plan": lambda: bench_plan(10_000),
        "steps": lambda: bench_steps(2000),
        "store": lambda: bench_store(int(os.environ.get("RWKVFLOW_BENCH_STEPS", "1000000"))),
    }
    for name in names or known:
        yield known[name]


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="plan, steps, store; all without")
    for bench in _chosen(parser.parse_args().what):
        bench()


if __name__ == "__main__":
    main()
