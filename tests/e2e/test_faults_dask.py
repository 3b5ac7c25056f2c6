"""A run whose commands a real Dask cluster carries out, where a worker dies or fails at any point: it ends well.

The cluster is one of this machine's, with two workers that Dask starts again; what they make goes through a
remote store in a folder. The fault comes to the worker that takes it, when that one flushes, renames, links or sends
for the k-th time. The run itself has to end with the right bytes; its store is whole, and somebody else gets the same.

A worker whose clock jumps back says nothing for as long: Dask waits by that clock. The scheduler takes it for lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.execute.cluster.elsewhere import Elsewhere
from rwkvflow.execute.cluster.fitness import Need, WantedWorker
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.store.collect import verify
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from tests.helpers import faulty_worker
from tests.helpers.faults import Kind
from tests.unit.execute.test_faults import WHOLE, plan
from tests.unit.execute.test_faults import run as run_here

pytest.importorskip("distributed")
TOPIC = "faults"
LOST = "30s"  # after so long without a word a worker is taken for lost; Dask's own is five minutes
SAID = faulty_worker.SAID
#: By kind, at how many points of a worker's part it can happen, or a few more.
KINDS: dict[Kind, int] = {
    "killed": 60,
    "full disk": 40,
    "disk stays full": 40,
    "clock jumps back": 60,
    "clock jumps ahead": 60,
    "remote fails": 24,
    "remote garbles": 24,
}


@pytest.fixture(scope="module")
def crew() -> Iterator[Any]:
    import dask
    import distributed

    from rwkvflow.execute.cluster.dask import DaskCrew

    # Workers are forks of a process that has imported everything: one that was killed is back in a moment.
    options = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.scheduler.worker-ttl": LOST}
    with dask.config.set(options):
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
    client = distributed.Client(cluster, set_as_default=False)
    wanted = WantedWorker(SAID.version, SAID.code, SAID.platform, SAID.sandbox)
    with DaskCrew(
        client, wanted, topic=TOPIC, greet=faulty_worker.greet, greeting="{}", carry_out=faulty_worker.carry_out,
        close=cluster.close,
    ) as made:  # fmt: skip
        yield made


def two_are_there(crew: Any) -> None:
    end = time.monotonic() + 120
    while len(crew.fit()) < 2:
        assert time.monotonic() < end, (crew.fit(), crew.unfit())
        time.sleep(0.05)


def check(crew: Any, kind: Kind, point: int, folder: Path) -> bool:
    """Whether the fault came at all; everything else is asserted."""
    two_are_there(crew)
    home, remote, what = folder / "home", folder / "remote", f"{kind} at {point}"
    home.mkdir(parents=True)
    (folder / "fault.json").write_text(json.dumps([kind, point]))
    before = set(crew.fit())
    store, told = Store(home), list[str]()
    store.remote = shared = Remote(f"file://{remote}", told.append)
    with store.scratch() as scratch:
        (scratch / "x").write_text("documents")
        bundle = store.put_file(scratch / "x")
    away = Elsewhere(
        store, crew, [bundle], topic=TOPIC, sandbox="host", need=lambda step: Need(), remote=shared, url=shared.url
    )
    executor = LocalExecutor(
        store, {}, {}, lambda event: None, run="r", cores=2, elsewhere=away, cancel=threading.Event()
    )
    with store.using():
        outcomes = executor.run(plan())
        assert outcomes["d"].ok, f"{what}: {[str(one.error) for one in outcomes.values()]} {told}"
        path = store.path(outcomes["d"].outputs["file"].digest)
        assert path is not None
        assert path.read_text() == WHOLE, what
        assert verify(store) == [], what
    assert list((home / "tmp").iterdir()) == [], what
    assert run_here(folder / "yours", remote) == WHOLE, f"{what}, for somebody else"
    came = (folder / "came").exists()
    if kind == "killed":
        crew._look()
        came = bool(before - set(crew.fit()))
    return came


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clock jumps back"])  # which lasts LOST
def test_a_worker_that_fails_costs_nothing_but_time(crew: Any, kind: Kind, tmp_path: Path) -> None:
    assert check(crew, kind, random.Random(kind).randrange(1, 10), tmp_path / "t"), "it came"


@pytest.mark.soak
def test_a_hundred_faults_of_workers(crew: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("RWKVFLOW_FAULTS_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    came: Counter[str] = Counter()
    for number in range(100):
        kind = chance.choice(sorted(KINDS))
        came[kind] += check(crew, kind, chance.randrange(1, KINDS[kind]), tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
        print(f"seed {seed}: {number + 1} runs, faults that came {dict(came)}", flush=True)
    assert all(came[kind] for kind in KINDS)
