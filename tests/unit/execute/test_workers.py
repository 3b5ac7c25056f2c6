"""Several workers that share nothing but a remote store: each step once, and none lost with the one that dies."""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rwkvflow.base.errors import (
    EnvironmentMissing,
    Interrupted,
    MachineFailed,
    RwkvflowError,
    StepFailed,
    StoreError,
    UsageError,
)
from rwkvflow.execute import claims
from rwkvflow.execute.base import Job, Made, Outcome, Product, Work
from rwkvflow.execute.claims import MOST_DEAD
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref, Step, StepLimits, key_of
from rwkvflow.store.conditional import create
from rwkvflow.store.failures import told
from rwkvflow.store.leases import Leases
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store

TTL_S = 3.0  # long enough that no busy machine makes a live worker look dead
SHORT_S = 0.4


def step(name: str, *needs: str, batch: str | None = None) -> Step:
    inputs = {need: Ref(need, "out") for need in needs}
    limits = StepLimits(cores=1)
    return Step(name, "test", "sandbox", {"name": name}, inputs, ("out",), limits=limits, batch=batch)


def plan(width: int = 4) -> Plan:
    """Some steps that are ready at once, and one each that follows, and one that needs all."""
    first = [step(f"a{number}") for number in range(width)]
    second = [step(f"b{number}", f"a{number}", batch="b" if number < 2 else None) for number in range(width)]
    return Plan([*first, *second, step("all", *(each.id for each in second))], ["all"])


class Worker(threading.Thread):
    """One worker: a store of its own, and an action that takes a moment. `dies` at the first step of that name."""

    def __init__(
        self, name: str, folder: Path, url: str, work: Plan, *, dies: str = "", slow: float = 0.02, ttl: float = TTL_S
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.told: list[str] = []
        self.store = Store(folder / name)
        remote = Remote(url, self.told.append)
        self.store.remote = remote
        self.leases = remote.leases(ttl)
        self.work, self.dies, self.slow = work, dies, slow
        self.commands: list[str] = []
        self.outcomes: Mapping[str, Outcome] = {}
        self.cancel = threading.Event()

    def make(self, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        found: dict[str, Made | RwkvflowError] = {}
        for job in jobs:
            self.commands.append(job.step.id)
            if job.step.id == self.dies:
                self.leases.claim = lambda key: None  # type: ignore[method-assign]
                self.leases._fs = None  # no beat any more, nothing given up: as after a power cut
                self.store.remote = None
                self.cancel.set()
                return {one.step.id: StepFailed("the machine is gone") for one in jobs}
            time.sleep(self.slow)
            path = work.folder / job.step.id
            held = "".join(f"({job.inputs[name].read_text()})" for name in sorted(job.inputs))
            path.write_text(job.step.id + held)
            found[job.step.id] = Made({"out": Product(path)})
        return found

    def run(self) -> None:
        executor = LocalExecutor(
            self.store, {"sandbox": self.make, "fetch": self.make}, {}, lambda event: None,
            run="r", cores=1, cancel=self.cancel, leases=self.leases,
        )  # fmt: skip
        try:
            self.outcomes = executor.run(self.work)
        except Interrupted:
            return


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # fsspec's memory gives all who open a file one object, with one position: two who read at once get parts of it.
    shared = MemoryFileSystem._open

    def own(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        return io.BytesIO(self.cat_file(path)) if mode == "rb" else shared(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", own)
    return f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def run(*workers: Worker) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()


def expected(width: int) -> str:
    return "all" + "".join(f"(b{number}(a{number}))" for number in range(width))


def read(worker: Worker) -> str:
    output = worker.outcomes["all"].outputs["out"]
    assert worker.store.bring([output])
    path = worker.store.path(output.digest)
    assert path is not None
    return path.read_text()


def test_each_step_is_done_by_one_of_them(url: str, tmp_path: Path) -> None:
    work = plan(6)
    workers = [Worker(name, tmp_path, url, work) for name in ("ann", "bob", "eve")]
    run(*workers)
    commands = [name for worker in workers for name in worker.commands]
    assert sorted(commands) == sorted(work.steps), "each once"
    assert sum(bool(worker.commands) for worker in workers) >= 2, "and not all by the same"
    for worker in workers:
        assert read(worker) == expected(6)
    system, root = fsspec.core.url_to_fs(url)
    assert not [path for path in system.find(f"{root}/leases") if path.endswith(".json")], "claims are given up"


def test_who_dies_costs_the_step_that_it_was_at(url: str, tmp_path: Path) -> None:
    work = plan(3)
    dead = Worker("dead", tmp_path, url, work, dies="a0", ttl=SHORT_S)
    run(dead)
    assert dead.commands == ["a0"]
    other = Worker("other", tmp_path, url, work, ttl=SHORT_S)
    start = time.monotonic()
    run(other)
    assert time.monotonic() - start >= SHORT_S, "it might have been alive"
    assert sorted(other.commands) == sorted(work.steps)
    assert read(other) == expected(3)


def test_who_is_slow_is_not_taken_for_dead(url: str, tmp_path: Path) -> None:
    work = Plan([step("a"), step("b", "a")], ["b"])
    slow = Worker("slow", tmp_path, url, work, slow=2.5, ttl=1.0)
    slow.start()
    while not slow.commands:
        time.sleep(0.01)
    quick = Worker("quick", tmp_path, url, work, ttl=1.0)
    run(quick)
    slow.join(timeout=30)
    assert quick.commands.count("a") == 0
    assert len(slow.commands) + len(quick.commands) == 2


def test_of_two_that_did_the_same_one_is_recorded(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Plan([step("a")], ["a"])
    workers = [Worker(name, tmp_path, url, work, slow=0.2) for name in ("ann", "bob")]
    for worker in workers:  # as if a claim had run out while its holder was cut off
        monkeypatch.setattr(worker.leases, "claim", lambda key: f"nowhere/{key}/000001.json")
    run(*workers)
    assert [worker.commands for worker in workers] == [["a"], ["a"]]
    system, root = fsspec.core.url_to_fs(url)
    assert len(system.find(f"{root}/index")) == 1
    assert len(system.find(f"{root}/blobs")) == 1
    assert not any(worker.told for worker in workers)


def test_a_claim_goes_to_one_of_many(url: str) -> None:
    system, root = fsspec.core.url_to_fs(url)
    leases = [Leases(system, root, url, ttl_s=SHORT_S) for _ in range(8)]
    start = threading.Barrier(len(leases))
    won: list[str] = []

    def claim(mine: Leases) -> None:
        start.wait()
        if place := mine.claim("ab" * 32):
            won.append(place)

    threads = [threading.Thread(target=claim, args=(each,)) for each in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert all(each.claim("ab" * 32) is None for each in leases)
    time.sleep(1.5 * SHORT_S)  # nobody gave a sign of life, and all have looked
    assert sum(each.claim("ab" * 32) is not None for each in leases) == 1


def test_a_clock_that_jumps_ends_no_claim(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system, root = fsspec.core.url_to_fs(url)
    one, other = (Leases(system, root, url, ttl_s=60) for _ in range(2))
    assert one.claim("ab" * 32)
    assert other.claim("ab" * 32) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert other.claim("ab" * 32) is None


def test_a_store_that_keeps_no_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(f"memory://{uuid.uuid4().hex}", print)
    monkeypatch.setattr("rwkvflow.store.conditional.create", lambda *_: True)
    with pytest.raises(UsageError, match="does not refuse"):
        remote.leases()
    with pytest.raises(UsageError, match="workers write"):
        Remote(f"memory://{uuid.uuid4().hex}", print, write=False).leases()


class Failing(Worker):
    """A worker at which the step `fails` fails, with an error that says whose."""

    fails = "a0"
    error: type[RwkvflowError] = StepFailed

    def make(self, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        bad = {job.step.id: self.error("odd", remedy="even") for job in jobs if job.step.id == self.fails}
        self.commands += bad
        return {**super().make([job for job in jobs if job.step.id not in bad], work), **bad}


def failing(tmp_path: Path, url: str, work: Plan, count: int, round_: str = "") -> list[Failing]:
    workers = [Failing(f"w{number}{uuid.uuid4().hex[:4]}", tmp_path, url, work) for number in range(count)]
    for worker in workers:
        worker.leases = worker.store.remote.leases(TTL_S, round_)  # type: ignore[union-attr]
    return workers


@pytest.mark.parametrize("round_", ["", "4711"])
def test_a_step_that_fails_is_tried_by_two_and_left_by_the_others(url: str, tmp_path: Path, round_: str) -> None:
    work = plan(2)
    workers = failing(tmp_path, url, work, 6, round_)
    run(*workers)
    tried = [worker for worker in workers if "a0" in worker.commands]
    assert len(tried) == 2
    for worker in workers:
        error = worker.outcomes["a0"].error
        assert type(error) is StepFailed, "the same exit code for all"
        assert error.message.startswith("odd")
        assert error.remedy == "even"
        assert ("so it was for 2 workers" in error.message) == (worker not in tried)
        assert worker.outcomes["all"].status == "skipped"
        assert worker.outcomes["a1"].ok, "what does not need it is done"


def test_the_workflow_says_how_many_try(url: str, tmp_path: Path) -> None:
    work = Plan([replace(step("a0"), limits=StepLimits(cores=1, retries=1))], ["a0"])
    workers = failing(tmp_path, url, work, 3)
    for worker in workers:
        setattr(worker.cancel, "wait", bool)  # noqa: B010 - no pause between the attempts
    run(*workers)
    assert [worker.commands for worker in workers if worker.commands] == [["a0", "a0"]], "twice, by one"


def test_what_is_the_machines_fault_others_do(url: str, tmp_path: Path) -> None:
    work = plan(1)
    for kind in (StoreError, EnvironmentMissing, MachineFailed):
        for worker in failing(tmp_path, f"{url}/{kind.__name__}", work, 3):
            worker.error = kind
            run(worker)
            assert worker.commands == ["a0"], "each tries"
        whole = Worker(f"whole{kind.__name__}", tmp_path, f"{url}/{kind.__name__}", work)
        run(whole)
        assert read(whole) == expected(1)


def test_failures_are_forgotten_with_their_round(url: str, tmp_path: Path) -> None:
    work = plan(1)
    for round_ in ("1", "1", "1"):
        run(*failing(tmp_path, url, work, 1, round_))
    [late] = failing(tmp_path, url, work, 1, "1")
    run(late)
    assert not late.commands, "in this round two have tried"
    for round_ in ("2", ""):  # another round, or none: begun after those that failed
        [other] = failing(tmp_path, url, work, 1, round_)
        run(other)
        assert other.commands == ["a0"]
    mended = Worker("mended", tmp_path, url, work)
    run(mended)
    assert read(mended) == expected(1)
    system, root = fsspec.core.url_to_fs(url)
    assert not [path for path in system.find(f"{root}/failures") if path.endswith(".json")], "none of what was done"
    with pytest.raises(UsageError, match="--round"):
        failing(tmp_path, url, work, 1, "../x")


def test_a_step_at_which_five_died_is_left(url: str, tmp_path: Path) -> None:
    work = Plan([step("a0")], ["a0"])
    key = key_of(work.steps["a0"].parts({}))
    system, root = fsspec.core.url_to_fs(url)
    waiting = Worker("waiting", tmp_path, url, work, ttl=SHORT_S)
    for number in range(1, MOST_DEAD + 1):
        create(system, f"{root}/leases/{key[:2]}/{key}/{number:06}.json", b"{}")
    other = Worker("other", tmp_path, url, work, ttl=SHORT_S)
    run(waiting, other)
    for worker in (waiting, other):
        assert not worker.commands
        assert "5 workers gave no sign of life" in str(worker.outcomes["a0"].error)
    again = Worker("again", tmp_path, url, work, ttl=SHORT_S)
    run(again)
    assert again.commands == ["a0"], "who begins after that tries again"


def test_a_worker_fetches_only_for_what_it_has_in_view(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are fetched by each who needs them, before a step can be claimed; not all of them by everybody."""
    monkeypatch.setattr(claims, "MOST_OPEN", 3)
    monkeypatch.setattr(claims, "AT_A_TIME", 2)
    count = 24

    def fetch(number: int) -> Step:
        return replace(step(f"fetch{number}"), action="fetch")

    fetches = [fetch(number) for number in range(count)]
    work = Plan([*fetches, *(step(f"a{n}", f"fetch{n}") for n in range(count))], [f"a{n}" for n in range(count)])
    workers = [Worker(name, tmp_path, url, work, slow=0.001) for name in ("ann", "bob")]
    run(*workers)
    commands = [name for worker in workers for name in worker.commands]
    assert sorted(name for name in commands if name[0] == "a") == sorted(work.targets), "each once"
    assert sum(name.startswith("fetch") for name in commands) <= count + 2 * (3 + 2)


def test_nobody_fetches_for_a_step_that_somebody_is_at(url: str, tmp_path: Path) -> None:
    work = Plan([replace(step("fetch"), action="fetch"), step("a", "fetch"), step("b", "a")], ["b"])
    one, other = (Worker(name, tmp_path, url, work) for name in ("ann", "bob"))
    key = key_of(work.steps["a"].parts({"fetch": "sha256:" + sha256(b"fetch").hexdigest()}))
    with one.leases.held([str(one.leases.claim(key))]):
        other.start()
        time.sleep(1)
        assert other.commands == ["fetch"], "which tells a's key"
        assert list(other.outcomes) == []
    other.join(timeout=30)
    assert other.commands == ["fetch", "a", "b"]


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b"\xff", b'{"worker": 1', b"[" * 5000])
def test_a_failure_that_is_none_is_no_failure(url: str, tmp_path: Path, bad: bytes) -> None:
    worker = Worker("ann", tmp_path, url, plan(1))
    key = "ab" * 32
    system, root = fsspec.core.url_to_fs(url)
    create(system, f"{root}/failures/{key[:2]}/{key}/@eve.json", bad)
    assert worker.leases.failures.of(key) == []
    hostile = {"worker": "x\ny", "message": "\x1b[2J", "remedy": "", "code": 99, "final": "yes"}
    create(system, f"{root}/failures/{key[:2]}/{key}/@eva.json", json.dumps(hostile).encode())
    [found] = worker.leases.failures.of(key)
    assert (found.worker, found.message, found.final) == ("x y", "\\x1b[2J", False)
    assert told([found]).exit_code == 5
