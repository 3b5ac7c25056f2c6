"""A run that is killed, or whose disk or remote store fails it, at any point: what is there is whole, the next ends.

A child runs a small plan, with a remote store in a folder. At the k-th time that it flushes, renames, links or writes
to the remote store, the fault happens; or a worker dies, of two that share the plan. Afterwards the store holds nothing
damaged, a new run finishes with the right bytes, and somebody else gets the same from the remote store. Three points of
each kind here, a thousand in soak. Faults of a network are in tests/e2e/test_faults_network.py.
"""

from __future__ import annotations

import os
import random
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.execute.base import Job, Made, Product, Work
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref, Step, StepLimits
from rwkvflow.store.collect import verify
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from tests.helpers.faults import Fault, Kind

#: By kind, at how many points of a run of the plan it can happen, or a few more; and what comes to one of two workers.
KINDS: dict[Kind, int] = {
    "killed": 70,
    "full disk": 46,
    "disk stays full": 46,
    "clock jumps back": 70,
    "clock jumps ahead": 70,
    "remote fails": 26,
    "remote is gone": 26,
    "remote is full": 20,
    "remote garbles": 26,
}
WORKERS: dict[Kind, int] = {"killed": 60, "disk stays full": 46, "clock jumps back": 60, "clock jumps ahead": 60}
ALL = [(kind, worker) for worker, kinds in ((False, KINDS), (True, WORKERS)) for kind in kinds]
MUST_END = (
    "clock jumps back",
    "clock jumps ahead",
    "remote fails",
    "remote is gone",
    "remote is full",
    "remote garbles",
)

WHOLE = "dba(a)(b)ca(a)(c)"  # what the plan makes
TTL_S = 1.5  # of the claims of workers


def plan() -> Plan:
    def step(name: str, *needs: str, outputs: tuple[str, ...] = ("file", "tree")) -> Step:
        inputs = {f"{need}.{output}": Ref(need, output) for need in needs for output in outputs}
        return Step(name, "test", "sandbox", {"name": name}, inputs, outputs, limits=StepLimits(cores=1))

    return Plan([step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")], ["d"])


def make(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
    found: dict[str, Made | RwkvflowError] = {}
    for job in jobs:
        folder = work.folder / job.step.id
        (folder / "tree").mkdir(parents=True)
        held = "".join((path / "x" if path.is_dir() else path).read_text() for _, path in sorted(job.inputs.items()))
        (folder / "file").write_text(job.step.id + held)
        (folder / "tree" / "x").write_text(f"({job.step.id})")
        found[job.step.id] = Made({"file": Product(folder / "file"), "tree": Product(folder / "tree")})
    return found


def run(root: Path, remote: Path, *, ttl: float | None = None) -> str:
    """Carry the plan out; what it made, or "" where a step failed. With `ttl`, as one of several workers."""
    store = Store(root)
    store.remote = shared = Remote(f"file://{remote}", lambda text: None)
    leases = shared.leases(ttl) if ttl else None
    executor = LocalExecutor(store, {"sandbox": make}, {}, lambda event: None, run="r", cores=2, leases=leases)
    with store.using():
        outcomes = executor.run(plan())
    if not outcomes["d"].ok or not store.bring([outcomes["d"].outputs["file"]]):
        return ""
    path = store.path(outcomes["d"].outputs["file"].digest)
    assert path is not None
    return path.read_text()


def fault(kind: Kind, point: int, root: Path, remote: Path, *, worker: bool) -> bool:
    """A run in a child, with a fault; whether it ended well. A worker has another beside it, which must end well."""
    ttl = TTL_S if worker else None
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Fault(kind, point)
            code = 0 if run(root, remote, ttl=ttl) == WHOLE else 1
        except BaseException:
            if kind in MUST_END:
                traceback.print_exc()
        finally:
            os._exit(code)
    if ttl:
        assert run(root.with_name("other"), remote, ttl=ttl) == WHOLE, f"{kind} at {point}, for the other worker"
    return os.waitpid(child, 0)[1] == 0


def check(kind: Kind, point: int, folder: Path, *, worker: bool = False) -> None:
    root, remote = folder / "mine", folder / "remote"
    what = f"{'worker: ' if worker else ''}{kind} at {point}"
    ended = fault(kind, point, root, remote, worker=worker)
    assert ended or kind not in MUST_END, what
    store = Store(root)
    with store.using():
        assert verify(store) == [], what
        assert list((root / "tmp").iterdir()) == []
    assert run(root, remote) == WHOLE, what
    assert run(folder / "yours", remote) == WHOLE, f"{what}, for somebody else"
    with Store(folder / "yours").using():
        assert verify(Store(folder / "yours")) == []


@pytest.mark.parametrize(("kind", "worker"), ALL)
def test_faults_of_each_kind_at_any_point(kind: Kind, worker: bool, tmp_path: Path) -> None:
    chance = random.Random(f"{kind} {worker}")
    points = (WORKERS if worker else KINDS)[kind]
    for number, point in enumerate(sorted(chance.sample(range(1, points), 2))):
        check(kind, point, tmp_path / str(number), worker=worker)


@pytest.mark.soak
def test_a_thousand_faults(tmp_path: Path) -> None:
    import shutil

    seed = int(os.environ.get("RWKVFLOW_FAULTS_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    tried: Counter[str] = Counter()
    for number in range(1000):
        kind, worker = chance.choice(ALL)
        point = chance.randrange(1, (WORKERS if worker else KINDS)[kind])
        check(kind, point, tmp_path / str(number), worker=worker)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
        tried[f"{'worker: ' if worker else ''}{kind}"] += 1
        print(f"seed {seed}: {number + 1} faults {dict(tried)}", flush=True)
