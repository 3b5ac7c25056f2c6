"""A run that is killed, or whose disk or remote store fails it, at any point: what is there is whole, the next ends.

A child runs a small plan, with a remote store in a folder. At the k-th time that it flushes, renames, links or writes
to the remote store, the fault happens; or a worker dies, of two that share the plan. Afterwards the store holds nothing
damaged, a new run finishes with the right bytes, and somebody else gets the same from the remote store. Three points of
each kind here, a thousand in soak. Faults of a network are in tests/e2e/test_faults_network.py.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.execute.base import Job, Made, Product, Work
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref, Step, StepLimits
from rwkvflow.store.collect import verify
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store

#: By kind, at how many points of a run of the plan it can happen, or a few more.
KINDS = {
    "worker killed": 60,
    "killed": 70,
    "full disk": 46,
    "remote fails": 26,
    "remote garbles": 26,
    "clock jumps": 70,
}


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


class Fault:
    """Patches what a run does to disks, in a child, so that a fault comes at the k-th time."""

    def __init__(self, kind: str, point: int) -> None:
        self.kind, self.left = kind, point
        from fsspec.implementations.local import LocalFileSystem

        if kind in ("killed", "worker killed", "full disk", "clock jumps"):
            self._wrap(os, "fsync")
            self._wrap(Path, "rename")
            self._wrap(Path, "hardlink_to")
        if kind != "full disk":
            for name in ("put_file", "mv", "pipe_file", "info"):
                self._wrap(LocalFileSystem, name)

    def _wrap(self, owner: Any, name: str) -> None:
        known: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self._happen(args)
            return known(*args, **kwargs)

        setattr(owner, name, wrapped)

    def _happen(self, args: Sequence[Any]) -> None:
        if self.kind in ("killed", "worker killed"):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10)
        if self.kind == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "remote fails":
            raise ConnectionResetError("cut")
        if self.kind == "clock jumps":
            now = time.time()
            time.time = lambda: now - 1e8
        for path in (Path(str(arg)) for arg in args):
            if self.kind == "remote garbles" and path.is_file() and "/remote/" in str(path):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)


def fault(kind: str, point: int, root: Path, remote: Path) -> None:
    """A run in a child, with a fault; whatever becomes of it. A worker has another beside it, which must end well."""
    ttl = TTL_S if kind == "worker killed" else None
    child = os.fork()
    if child == 0:
        try:
            Fault(kind, point)
            run(root, remote, ttl=ttl)
        finally:
            os._exit(0)
    if ttl:
        assert run(root.with_name("other"), remote, ttl=ttl) == WHOLE, f"{kind} at {point}, for the other worker"
    os.waitpid(child, 0)


def check(kind: str, point: int, folder: Path) -> None:
    root, remote = folder / "mine", folder / "remote"
    fault(kind, point, root, remote)
    store = Store(root)
    with store.using():
        assert verify(store) == [], f"{kind} at {point}"
        assert list((root / "tmp").iterdir()) == []
    assert run(root, remote) == WHOLE, f"{kind} at {point}"
    assert run(folder / "yours", remote) == WHOLE, f"{kind} at {point}, for somebody else"
    with Store(folder / "yours").using():
        assert verify(Store(folder / "yours")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_faults_of_each_kind_at_any_point(kind: str, tmp_path: Path) -> None:
    random.seed(kind)
    for number, point in enumerate(sorted(random.sample(range(1, KINDS[kind]), 3))):
        check(kind, point, tmp_path / str(number))


@pytest.mark.soak
def test_a_thousand_faults(tmp_path: Path) -> None:
    import shutil

    seed = int(os.environ.get("RWKVFLOW_FAULTS_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    tried: Counter[str] = Counter()
    for number in range(1000):
        kind = chance.choice(sorted(KINDS))
        check(kind, chance.randrange(1, KINDS[kind]), tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
        tried[kind] += 1
        print(f"seed {seed}: {number + 1} faults {dict(tried)}", flush=True)
