"""A run whose commands a real Dask cluster carries out, where a worker dies or fails at any point: it ends well.

The cluster is one of this machine's, with two workers that Dask starts again; what they make goes through a
remote store in a folder. The fault comes to the worker that takes it, when that one flushes, renames, links or sends
for the k-th time. The run itself has to end with the right bytes; its store is whole, and somebody else gets the same.

A worker whose clock jumps back says nothing for as long: Dask waits by that clock. The scheduler takes it for lost.
Where a run fails, its diary says what the fault met, what the run told, and what Dask's scheduler and nannies did.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.execute.cluster.connection import Certificates, connect
from rwkvflow.execute.cluster.elsewhere import Elsewhere
from rwkvflow.execute.cluster.fitness import Executor, Need, WantedWorker
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


class Diary(logging.Handler):
    """The last that was told, by whomever, with the seconds since the run began."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=400)
        self._start = time.monotonic()

    def begin(self) -> None:
        """A run begins; what went before it counts too, for a fault may come late."""
        self._lines.append(f"---- {time.monotonic() - self._start:.2f} s, and from 0 on:")
        self._start = time.monotonic()

    def add(self, what: object) -> None:
        """Something was told."""
        self._lines.append(f"{time.monotonic() - self._start:.2f} {what}")

    def emit(self, record: logging.LogRecord) -> None:
        """Dask logs something."""
        self.add(f"{record.name}: {record.getMessage()[:1000]}")

    def __str__(self) -> str:
        return "".join(f"\n    {line}" for line in self._lines)


DIARY = Diary()


@pytest.fixture(scope="module")
def crew() -> Iterator[Any]:
    import dask

    from rwkvflow.execute.cluster.dask import DaskCrew

    # Workers are forks of a process that has imported everything: one that was killed is back in a moment.
    options = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.scheduler.worker-ttl": LOST}
    with dask.config.set(options):
        client, close = connect(Executor("own", workers=2), Certificates(), cores=2)
    wanted = WantedWorker(SAID.version, SAID.code, SAID.platform, SAID.sandbox)
    with DaskCrew(
        client, wanted, topic=TOPIC, greet=faulty_worker.greet, greeting="{}", carry_out=faulty_worker.carry_out,
        close=close,
    ) as made:  # fmt: skip
        logging.getLogger("distributed").addHandler(DIARY)
        yield made
        logging.getLogger("distributed").removeHandler(DIARY)


def two_are_there(crew: Any) -> None:
    end = time.monotonic() + 120
    while len(crew.fit()) < 2:
        assert time.monotonic() < end, (crew.fit(), crew.unfit())
        time.sleep(0.05)


def check(crew: Any, kind: Kind, point: int, folder: Path) -> bool:
    """Whether the fault came at all; everything else is asserted."""
    DIARY.begin()
    try:
        two_are_there(crew)
        carry_out(crew, kind, point, folder)
    except BaseException as error:
        came = folder / "came"
        met = came.read_text() if came.exists() else "it did not come"
        error.add_note(f"{kind} at {point}: {met}; fit {crew.fit()}, others {crew.unfit()}{DIARY}")
        raise
    return (folder / "came").exists()


def carry_out(crew: Any, kind: Kind, point: int, folder: Path) -> None:
    """A run, and a second one by somebody else."""
    home, remote, what = folder / "home", folder / "remote", f"{kind} at {point}"
    home.mkdir(parents=True)
    (folder / "fault.json").write_text(json.dumps([kind, point]))
    store = Store(home)
    store.remote = shared = Remote(f"file://{remote}", DIARY.add)
    with store.scratch() as scratch:
        (scratch / "x").write_text("documents")
        bundle = store.put_file(scratch / "x")
    away = Elsewhere(
        store, crew, [bundle], topic=TOPIC, sandbox="host", need=lambda step: Need(), remote=shared, url=shared.url
    )
    executor = LocalExecutor(store, {}, {}, DIARY.add, run="r", cores=2, elsewhere=away, cancel=threading.Event())
    with store.using():
        outcomes = executor.run(plan())
        assert outcomes["d"].ok, f"{what}: {[str(one.error) for one in outcomes.values()]}"
        path = store.path(outcomes["d"].outputs["file"].digest)
        assert path is not None
        assert path.read_text() == WHOLE, what
        assert verify(store) == [], what
    assert list((home / "tmp").iterdir()) == [], what
    assert run_here(folder / "yours", remote) == WHOLE, f"{what}, for somebody else"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clock jumps back"])  # which lasts LOST
def test_a_worker_that_fails_costs_nothing_but_time(crew: Any, kind: Kind, tmp_path: Path) -> None:
    assert check(crew, kind, random.Random(kind).randrange(1, 10), tmp_path / "t"), "it came"


@pytest.mark.soak
def test_one_that_is_killed_again_and_again_comes_back_each_time(crew: Any, tmp_path: Path) -> None:
    """Dask looks after 15 s whether one that was lost is back; for longer than that one of two is killed, mostly."""
    end = time.monotonic() + 40
    count = 0
    while time.monotonic() < end or count < 4:
        count += check(crew, "killed", 1, tmp_path / str(count))
    two_are_there(crew)


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
