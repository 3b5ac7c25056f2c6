"""What 100 workers do with 100,000 steps: `python scripts/simulate_cluster.py [--workers 100] [--steps 100000] …`.

A discrete-event simulation by a virtual clock. Plan, scheduler and leases are the real ones: each worker is a
`LocalExecutor`, whose threads are replaced by events, and whose claims are made by `Leases` in a file system in memory
that counts requests. Only these are numbers: how long a step takes and how much it makes (drawn, by its id, from what
the same stage took in a real run, `--history`), how long a request to the store takes, the network's bandwidth, and
what the scheduler's thread costs for each step that it looks at (measured here, when it begins).

It prints the time until the last worker ends, the share of it that was work, and where the rest went: who waited for
the store, for inputs, or for others; and how many requests a second the store had to answer.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import queue
import resource
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from rwkvflow.execute import claims as claims_module  # noqa: E402
from rwkvflow.execute import local as local_module  # noqa: E402
from rwkvflow.execute.base import Outcome  # noqa: E402
from rwkvflow.execute.claims import CLAIMED  # noqa: E402
from rwkvflow.execute.local import LocalExecutor  # noqa: E402
from rwkvflow.execute.node import StepNode, Strength  # noqa: E402
from rwkvflow.plan.plan import Plan, needs  # noqa: E402
from rwkvflow.plan.step import Step, expected, key_of  # noqa: E402
from rwkvflow.store import leases as leases_module  # noqa: E402
from rwkvflow.store.history import read  # noqa: E402
from rwkvflow.store.leases import BEATS, Leases  # noqa: E402
from rwkvflow.store.record import Output, Record, Wanted  # noqa: E402

#: Seconds and bytes of each stage where no history is given: a model of 0.4B on two cores, rounded.
USUAL: dict[str, list[tuple[float, int]]] = {
    "fetch": [(20.0, 900 << 20)],
    "wheels": [(5.0, 130 << 20)],
    "image": [(10.0, 1 << 10)],
    "engine": [(60.0, 4 << 20)],
    "convert": [(4.0, 500 << 20)],
    "reference": [(30.0, 1 << 20)],
    "smoke": [(20.0, 20 << 10)],
}


@dataclass
class World:
    """The clock, the store that all share, and the numbers."""

    latency_s: float  # of one request
    bandwidth: float  # bytes a second, of each worker
    look_s: float  # of the processor, for each step that a scheduler looks at
    took: Mapping[str, Sequence[tuple[float, int]]]  # by stage: seconds and bytes of real steps
    scale: float = 1.0
    ttl_s: float = 120.0
    now: float = 0.0
    records: dict[str, Record] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    waited: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by what, over all workers
    done: set[str] = field(default_factory=set)  # ids of steps whose records are there
    shortcut: bool = True
    held: dict[str, str] = field(default_factory=dict)  # leases that somebody keeps alive
    asked: int = 0  # requests of whoever acts at this moment
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, action))

    def go(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def request(self, kind: str, count: int = 1) -> None:
        """Count requests of whoever acts now."""
        self.requests[kind] += count
        self.asked += count

    def cost(self) -> float:
        """What the requests since the last time took, one after another."""
        asked, self.asked = self.asked, 0
        return asked * self.latency_s

    def of(self, step: Step) -> tuple[float, int]:
        """Seconds and bytes of a step: the same for all workers and runs."""
        known = self.took.get(step.stage) or USUAL.get(step.stage) or [(1.0, 1 << 10)]
        number = int.from_bytes(hashlib.sha256(step.id.encode()).digest()[:8], "big")
        seconds, size = known[number % len(known)]
        return seconds * self.scale, size


class Files:
    """What `Leases` and `Failures` need of a file system; every call is a request."""

    protocol = "memory"

    def __init__(self, world: World) -> None:
        self.world = world
        self.folders: dict[str, dict[str, bytes]] = {}

    def pipe_file(self, place: str, data: bytes, mode: str = "overwrite") -> None:
        """Write; "create": where there is nothing."""
        self.world.request("put")
        folder, _, name = place.rpartition("/")
        known = self.folders.setdefault(folder, {})
        if mode == "create" and name in known:
            raise FileExistsError(place)
        known[name] = data

    def cat_file(self, place: str, **_kept: int) -> bytes:
        """Read; a claim that is kept alive reads otherwise each time that its holder gave a sign."""
        self.world.request("get")
        folder, _, name = place.rpartition("/")
        if name not in self.folders.get(folder, {}):
            raise FileNotFoundError(place)
        beat = int(self.world.now / (self.world.ttl_s / BEATS)) if place in self.world.held else 0
        return self.folders[folder][name] + b"%d" % beat

    def ls(self, folder: str, detail: bool = False) -> list[str]:
        """The names of a folder."""
        self.world.request("list")
        if not self.folders.get(folder):
            raise FileNotFoundError(folder)
        return [f"{folder}/{name}" for name in self.folders[folder]]

    def find(self, folder: str) -> list[str]:
        """All files below a folder."""
        self.world.request("list")
        return [f"{at}/{name}" for at in self.folders if at.startswith(f"{folder}/") for name in self.folders[at]]

    def rm_file(self, place: str) -> None:
        """Remove."""
        self.world.request("delete")
        folder, _, name = place.rpartition("/")
        del self.folders[folder][name]
        if not self.folders[folder]:
            del self.folders[folder]

    def invalidate_cache(self, folder: str) -> None:
        """Nothing is kept."""


class Shelf:
    """A worker's own store, and the one that all share below it."""

    def __init__(self, world: World) -> None:
        self.world, self.remote = world, world
        self.own: dict[str, Record] = {}
        self.there: set[str] = set()

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """A record of either store; a miss in the own one is a request."""
        if key not in self.own:
            self.world.request("get")
            if key not in self.world.records:
                return None
            self.own[key] = self.world.records[key]
        return self.own[key]

    def present(self, output: Output) -> bool:
        """Whether the bytes are here."""
        return output.digest in self.there

    def remember(self, run: str, step: str, parts: Mapping[str, Any]) -> None:
        """For `explain`; its cost is part of the measured one."""


class Inbox(deque[Any]):
    """The queue of the scheduler, for one thread."""

    def empty(self) -> bool:
        """As that of queue.Queue."""
        return not self

    def get(self, timeout: float) -> Any:
        """As that of queue.Queue, which here never waits."""
        if not self:
            raise queue.Empty
        return self.popleft()


class Nodes(dict[str, StepNode]):
    """Nodes are made when they are first looked at: 100 schedulers fit in memory."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.targets: frozenset[str] = frozenset()

    def __missing__(self, name: str) -> StepNode:
        wanted = Strength.RECORD if name in self.targets else Strength.NOTHING
        node = self[name] = StepNode(self.plan.steps[name], wanted=wanted)
        return node


class Parts(dict[str, Any]):
    """What a key is made of, with the key: all workers come to the same."""

    key = ""


class KnownStep(Step):
    """A step that knows what its key was."""

    def parts(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """As those of a step."""
        known = KEYS.get(self.id)
        if known is None:
            known = KEYS[self.id] = Parts(super().parts(digests))
            known.key = key_of(known)
        return known


KEYS: dict[str, Parts] = {}


class Worker(LocalExecutor):
    """A real scheduler on the virtual clock. Its commands are durations."""

    def __init__(self, world: World, files: Files, number: int, plan: Plan, cores: int) -> None:
        leases = Leases(files, "store", "store", ttl_s=world.ttl_s, owner=f"w{number}")
        super().__init__(Shelf(world), {}, {}, lambda event: None, run="r", cores=cores, leases=leases)  # type: ignore[arg-type]
        self.world, self.shelf = world, Shelf(world)
        self.store = self.shelf  # type: ignore[assignment]
        self._ended = Inbox()  # type: ignore[assignment]
        self._pool = self  # type: ignore[assignment]
        self._nodes, self.plan = Nodes(plan), plan
        assert self.claims is not None  # noqa: S101
        self._work = deque()
        self.claims.order(plan.targets)
        self._next, self.claims.next = self.claims.next, self._next_or_pass  # type: ignore[method-assign]
        self.passing: Sequence[str] = ()
        self.passed: set[str] = set()
        self.reached: set[str] = set()  # steps of those that were passed by
        self._nodes.targets = frozenset(plan.targets)
        self.idle = False
        self.worked = 0.0  # seconds in which a command ran
        self.commands: list[str] = []
        self.end = 0.0

    # ---- the loop of LocalExecutor.run, an event for each round -------------------------------------------------

    def turn(self) -> None:
        """Look at one step, or start what is ready, or wait."""
        self.world.asked = 0
        if self._work:
            self._advance(self._work.popleft())
            spent = self.world.cost()
            self.world.waited["look-ups"] += spent
            self.world.waited["scheduler"] += self.world.look_s
            self.world.after(spent + self.world.look_s, self.turn)
            return
        self._start()
        if self._look_further():
            self.world.after(0.0, self.turn)
        elif self.passing:
            self._pass_by(self.passing)
        elif not self._running and not self._ready and not self.claims.parked:  # type: ignore[union-attr]
            self.end = self.world.now
        elif self._ended:
            self._collect()
            self.world.after(0.0, self.turn)
        else:
            self.idle = True
            # Claimed by others: when it is time to look again.
            times = [max(node.not_before for node in nodes) for nodes in self._ready.values()]
            times += self.claims.parked.values()  # type: ignore[union-attr]
            later = [at for at in times if at > self.world.now]
            if later:
                self.world.after(min(later) - self.world.now, self.wake)

    def wake(self) -> None:
        """What the scheduler waited for has come."""
        if self.idle and (self._ended or self._ready or self.claims.parked):  # type: ignore[union-attr]
            self.idle = False
            self._collect()
            self.turn()

    def told(self, outcomes: Mapping[str, Outcome | None]) -> None:
        """How commands ended; None: look at it again."""
        self._ended.append(dict(outcomes))  # type: ignore[attr-defined]
        self.wake()

    # Most of what a worker looks at, others have done long ago. That is as sure as dull: each step costs a look at it,
    # one at what needs it when it has settled, and a request. So it is not carried out here, but counted.

    def _next_or_pass(self, ended: Callable[[str], bool], *, room: bool) -> Sequence[str]:
        found = self._next(ended, room=room)
        new = self.world.shortcut and not any(name in self._nodes for name in found)
        if found and new and all(name in self.world.done for name in found):
            self.passing = found
            self.claims._open = [name for name in self.claims._open if name not in set(found)]  # type: ignore[union-attr]
            return ()
        return found

    def _pass_by(self, targets: Sequence[str]) -> None:
        self.passing = ()
        self.passed.update(targets)
        todo, count = list(targets), 0
        while todo:
            name = todo.pop()
            if name in self.reached or (name in self._nodes and self._nodes[name].outcome is not None):
                continue
            self.reached.add(name)
            count += 1
            todo += needs(self.plan.steps[name])
        self.world.requests["get"] += count
        asked, looked = count * self.world.latency_s, 2 * count * self.world.look_s
        self.world.waited["look-ups"] += asked
        self.world.waited["scheduler"] += looked
        self.world.after(asked + looked, self.turn)

    # ---- what its threads would do --------------------------------------------------------------------------------

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """What a pool of threads is asked to do."""
        if function == self._bring:
            name, _, record = arguments
            self._fetch(name, record)
        else:
            self._command(arguments[0])

    def _share(self, step: Step, key: str, record: Record, *, again: bool = False) -> None:
        """Was done where it was made."""

    def _fetch(self, name: str, record: Record) -> None:
        """From the remote store, where it has more than the record."""
        contents = self._nodes[name].step.action not in local_module.REFETCHED
        size = sum(output.size for output in record.outputs.values())
        self.world.requests["get"] += 1
        spent = self.world.latency_s + (size / self.world.bandwidth if contents else 0.0)
        self.world.waited["inputs from the store"] += spent

        def done() -> None:
            if contents:
                self.shelf.there.update(output.digest for output in record.outputs.values())
            self.told({name: None})

        self.world.after(spent, done)

    def _command(self, steps: Sequence[tuple[Step, str, dict[str, str]]]) -> None:
        """As `Claims.carry_out` does it."""
        world, leases = self.world, self.claims.leases  # type: ignore[union-attr]
        world.asked = 0
        if steps[0][0].action not in CLAIMED:
            self._run(steps, {}, 0.0)
            return
        places = {step.id: place for step, key, _ in steps if (place := leases.claim(key)) is not None}
        mine = [item for item in steps if item[0].id in places]
        todo = [item for item in mine if self._nodes[item[0].id].brought or self.shelf.lookup(item[1]) is None]
        for _, key, _ in todo:
            leases.failures.of(key)
        world.held.update(dict.fromkeys(places.values(), leases.owner))
        spent = world.cost()
        world.waited["claims"] += spent
        if not todo:
            for place in places.values():
                self._give_up(place)
            world.after(spent + world.cost(), lambda: self.told({step.id: None for step, _, _ in steps}))
            return
        others = {step.id: None for step, _, _ in steps if step.id not in {item[0].id for item in todo}}
        self._run(todo, places, spent, others)

    def _run(
        self,
        steps: Sequence[tuple[Step, str, dict[str, str]]],
        places: Mapping[str, str],
        before: float,
        others: Mapping[str, None] | None = None,
    ) -> None:
        known = [self.world.of(step) for step, _, _ in steps]
        seconds = max(took for took, _ in known) if steps[0][0].batch else sum(took for took, _ in known)
        size = sum(made for _, made in known)
        self.worked += seconds
        self.commands += [step.id for step, _, _ in steps]
        self.world.requests["put"] += int(seconds / (self.world.ttl_s / BEATS)) * len(places)
        sends = size / self.world.bandwidth + 3 * len(steps) * self.world.latency_s if places else 0.0
        self.world.requests["put"] += 2 * len(steps) if places else len(steps)
        self.world.waited["sending what was made"] += sends

        def done() -> None:
            outcomes: dict[str, Outcome | None] = dict(others or {})
            for (step, key, _), (took, made) in zip(steps, known, strict=True):
                outputs = {}
                for name in step.outputs:
                    digest = "sha256:" + hashlib.sha256(f"{key}/{name}".encode()).hexdigest()
                    digest = expected(step).digests.get(name, digest)
                    outputs[name] = Output(digest, "file", made)
                record = self.world.records.setdefault(key, Record(step.id, outputs, took))
                self.world.done.add(step.id)
                self.shelf.own[key] = record
                self.shelf.there.update(output.digest for output in record.outputs.values())
                outcomes[step.id] = Outcome("done", key, record.outputs, seconds=took)
            self.world.asked = 0
            for place in places.values():
                self._give_up(place)
            self.world.after(self.world.cost(), lambda: self.told(outcomes))

        self.world.after(before + seconds + sends, done)

    def _give_up(self, place: str) -> None:
        self.world.held.pop(place, None)
        self.claims.leases._give_up(place)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Result:
    """Seconds of the virtual clock, and counts."""

    makespan: float
    work: float  # of commands that had to be done once
    workers: int
    requests: Mapping[str, int]
    commands: int
    steps: int
    fetches: int
    waited: Mapping[str, float]

    @property
    def share(self) -> float:
        """Of the workers' time, how much was work that had to be done."""
        return self.work / (self.makespan * self.workers)


def simulate(plan: Plan, workers: int, world: World, *, cores: int = 2, at_a_time: int | None = None) -> Result:
    """Let so many workers carry a plan out. `at_a_time`: how many targets they look at, else as they really do."""
    KEYS.clear()
    steps = [KnownStep(**{name: getattr(step, name) for name in step.__dataclass_fields__}) for step in plan]
    plan = Plan(steps, plan.targets)
    changed: list[tuple[Any, str, Any]] = [
        (local_module, "time", SimpleNamespace(monotonic=lambda: world.now)),
        (leases_module, "time", SimpleNamespace(monotonic=lambda: world.now)),
        (local_module, "key_of", lambda parts: parts.key),
        (claims_module, "time", SimpleNamespace(monotonic=lambda: world.now)),
        (claims_module, "AT_A_TIME", at_a_time or claims_module.AT_A_TIME),
    ]
    kept = [(module, name, getattr(module, name)) for module, name, _ in changed]
    try:
        for module, name, value in changed:
            setattr(module, name, value)
        files = Files(world)
        crew = [Worker(world, files, number, plan, cores) for number in range(workers)]
        for number, worker in enumerate(crew):
            world.after(number * 0.01, worker.turn)
        world.go()
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
    for worker in crew:
        seen = (target for target in plan.targets if target not in worker.passed)
        left = [target for target in seen if worker._nodes[target].outcome is None]
        if left:
            raise RuntimeError(f"{len(left)} targets never ended, such as {left[0]}")
    commands = Counter(name for worker in crew for name in worker.commands)
    twice = [name for name, count in commands.items() if count > 1 and plan.steps[name].action in CLAIMED]
    if twice:
        raise RuntimeError(f"{len(twice)} steps were done twice, such as {twice[0]}")
    batches = defaultdict(list)
    for name in commands:
        step = plan.steps[name]
        if step.action in CLAIMED:
            batches[step.batch or name].append(world.of(step)[0])
    work = sum(max(took) for took in batches.values())
    makespan = max(worker.end for worker in crew)
    fetches = sum(count for name, count in commands.items() if name.startswith("fetch/"))
    return Result(
        makespan, work, workers, dict(world.requests), commands.total(), len(plan), fetches, dict(world.waited)
    )


def took_in(history: Path) -> dict[str, list[tuple[float, int]]]:
    """By stage: seconds and bytes of the steps that a real run carried out. The store is the one the history is in."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    root = history.parents[2]
    for event in read(history):
        if event["event"] == "StepFinished" and event["status"] == "done":
            size, key = 0, str(event.get("key", ""))
            path = root / "index" / key[:2] / f"{key}.json"
            if path.is_file():
                size = sum(int(output["size"]) for output in json.loads(path.read_text())["outputs"].values())
            found[event["stage"]].append((float(event["seconds"]), size))
    return dict(found)


def measured_look(plan: Plan) -> float:
    """Seconds of the processor that a scheduler spends on a step which others have done: key, record, bookkeeping."""
    import tempfile

    from rwkvflow.store.store import Store

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        names = list(plan.steps)[:2000]
        start = time.process_time()
        for name in names:
            step = plan.steps[name]
            parts = step.parts({})
            key = key_of(parts)
            store.lookup(key)
            store.remember("r", name, parts)
        return (time.process_time() - start) / len(names)


def main() -> None:
    """Simulate, and print a table."""
    from bench_load import FORMATS, many_models, plan_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[100])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--cores", type=int, default=2, help="of each worker")
    parser.add_argument("--history", type=Path, help="events of a real run: runs/*/*.jsonl in its store")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0], help="steps take so many times as long")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.03], metavar="SECONDS", help="of a request")
    parser.add_argument("--bandwidth", type=float, default=125e6, help="bytes a second, of each worker")
    parser.add_argument("--at-a-time", type=int, help="targets that a worker looks at; as many as it really does")
    chosen = parser.parse_args()
    start = time.process_time()
    plan = plan_of(*many_models(chosen.steps // (2 * len(FORMATS) + 2)))
    print(f"a plan of {len(plan)} steps: {time.process_time() - start:.1f} s of the processor, for each worker")
    took = took_in(chosen.history) if chosen.history else {}
    look = measured_look(plan)
    print(f"a look at a step: {1e6 * look:.0f} µs of the processor")
    for stage, known in sorted((took or USUAL).items()):
        print(f"  {stage:<10} {len(known):>4} steps, {sum(each for each, _ in known) / len(known):.2f} s each")
    row = "{:>7} {:>6} {:>8} {:>9} {:>7} {:>9} {:>9} {:>8}  {}"
    print(
        row.format("workers", "scale", "latency", "hours", "share", "requests", "a second", "fetches", "worker seconds")
    )
    for scale in chosen.scale:
        for latency in chosen.latency:
            for workers in chosen.workers:
                world = World(latency, chosen.bandwidth, look, took, scale)
                done = simulate(plan, workers, world, cores=chosen.cores, at_a_time=chosen.at_a_time)
                count = sum(done.requests.values())
                lost = ", ".join(f"{what} {seconds:.0f}" for what, seconds in sorted(done.waited.items()))
                print(
                    row.format(
                        workers, f"{scale:g}", f"{latency * 1000:g} ms", f"{done.makespan / 3600:.2f}",
                        f"{100 * done.share:.0f} %", count, f"{count / done.makespan:.0f}", done.fetches, lost,
                    ),
                    flush=True,
                )  # fmt: skip
                print(f"        {limit(done.share, done.waited)}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"simulated in {time.process_time() - start:.0f} s of the processor, with {peak:.1f} GiB")


def limit(share: float, waited: Mapping[str, float]) -> str:
    """What the workers' time went into besides work, the largest first: what would have to become faster."""
    whole = sum(waited.values())
    if not whole or share >= 0.9:
        return f"the limit is the work itself: {100 * share:.0f} % of all workers' time"
    first = sorted(waited.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{what} {100 * seconds / whole:.0f} %" for what, seconds in first)
    return f"the limit is {first[0][0]}; where the time that was no work went: {parts}"


if __name__ == "__main__":
    main()
