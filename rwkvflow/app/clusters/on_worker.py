"""What a worker of a cluster does: the two functions that are sent to it by name, with text for an argument.

A worker makes the plan anew from the documents, and carries out what its own plan calls by the same key. It looks up
nothing in any index: what a step needs was told with the step, and the bytes come from the store by their hashes.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import EnvironmentMissing, Interrupted, RwkvflowError, StepFailed, StoreError
from rwkvflow.base.machine import total_memory
from rwkvflow.execute.cluster.fitness import CORES, MEMORY, Greeting
from rwkvflow.execute.cluster.outbox import Outbox, TaskWorker
from rwkvflow.execute.cluster.words import Answer, AnswerError, Ended, Message, output_of, parse_message
from rwkvflow.store.record import Output, Record, Wanted
from rwkvflow.store.remote import Remote

PLANS = 8  # of different runs, that a worker keeps


# ---- who it is -------------------------------------------------------------------------------------------------


async def greet(text: str, dask_worker: Any) -> str:
    """What this worker is and has. Tells Dask of its cores and memory, by which steps are given to it."""
    asked = json.loads(text)
    cores = float(dask_worker.state.nthreads)
    limit = dask_worker.memory_manager.memory_limit
    greeting = await asyncio.to_thread(_greeting, asked, str(dask_worker.name), cores, limit)
    amounts = {CORES: greeting.cores, **({MEMORY: float(greeting.memory)} if greeting.memory else {})}
    if any(dask_worker.state.total_resources.get(name) != amount for name, amount in amounts.items()):
        await dask_worker.set_resources(**amounts)
    return greeting.to_text()


def _greeting(asked: Mapping[str, Any], name: str, cores: float, limit: int | None) -> Greeting:
    from rwkvflow import __version__
    from rwkvflow.app.clusters.bundle import code_digest
    from rwkvflow.sandbox.host import host_platform

    problem, sandbox = "", ""
    try:
        root = _root(asked["store"])
        sandbox = _sandbox(str(asked["sandbox"]), root, walls=bool(asked["walls"])).name
        problem = _store_problem(asked, root)
    except Exception as error:  # whatever it is, another worker may do
        problem = error.message if isinstance(error, RwkvflowError) else f"{type(error).__name__}: {error}"
        sandbox = str(asked["sandbox"])
    memory = limit or total_memory()
    return Greeting(
        f"{name} on {platform.node()}", __version__, code_digest(), host_platform(), sandbox, cores, memory, problem
    )


def _root(given: str | None) -> Path:
    from rwkvflow.store.store import default_root

    named = given or os.environ.get("RWKVFLOW_STORE")
    return Path(named) if named else default_root()


def _sandbox(name: str, root: Path, *, walls: bool) -> Any:
    """The sandbox. Raises EnvironmentMissing where it is not there, or would not keep in what has to be kept in."""
    from rwkvflow.sandbox.choose import check_kept_in, choose

    sandbox, why = choose(name, root)
    check_kept_in(sandbox, "auto" if walls else name, why, "the recipe brings code" if walls else None)
    return sandbox


def _store_problem(asked: Mapping[str, Any], root: Path) -> str:
    """Why this worker and the run do not have a store together; "" where they do."""
    probe = output_of(asked["probe"])
    if asked["store"] is not None:
        from rwkvflow.app.clusters.bundle import machine

        if asked["machine"] != machine():
            return "it is another machine, and there is no remote store (--remote) through which bytes could go"
        path = root / "blobs" / probe.digest[7:9] / probe.digest[7:]
        return "" if path.is_file() else f"it does not see the store {root}"
    told: list[str] = []
    if Remote(str(asked["remote"]), told.append).has(probe):
        return ""
    return f"it does not see what this run wrote to the remote store: {'; '.join(told) or 'it is not there'}"


# ---- what it does ----------------------------------------------------------------------------------------------


def carry_out(text: str) -> str:
    """Carry out the steps of a message. Never raises: what went wrong is part of the answer."""
    worker = TaskWorker()
    try:
        message = parse_message(text)
    except (AnswerError, RwkvflowError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Answer(worker.name, refused=f"it does not understand the message: {error}").to_text()
    outbox = Outbox(worker, message)
    try:
        with outbox, worker.watched() as cancel:
            return _carry_out(message, worker.name, outbox, cancel).to_text()
    except _LostDocument as error:
        return Answer(worker.name, refused=error.message, lost=(error.digest,)).to_text()
    except Exception as error:
        return Answer(worker.name, refused=f"{type(error).__name__}: {error}").to_text()


class _LostDocument(StepFailed):
    """The store has not the documents of the run, or a file that they name, or has other bytes under the name."""

    def __init__(self, output: Output) -> None:
        super().__init__("it cannot get the documents of the run")
        self.digest = output.digest


def _carry_out(message: Message, name: str, outbox: Outbox, cancel: threading.Event) -> Answer:
    from rwkvflow.execute.actions import actions, probes
    from rwkvflow.execute.local import LocalExecutor
    from rwkvflow.plan.plan import Plan
    from rwkvflow.store.store import Store

    store = Store(_root(message.store))
    remote = None
    if message.remote is not None:
        remote = store.remote = ToldStore(message, outbox.note)
    with store.using():
        plan = _plan(str(store.root), message.bundle, store)
        steps = list(_closure(plan, message.steps))
        guard = _Guard(message)
        sandbox = _sandbox(message.sandbox, store.root, walls=False)
        executor = LocalExecutor(
            store,
            {action: guard(made) for action, made in actions(store, sandbox).items()},
            probes(store, sandbox),
            outbox.event,
            run=f"cluster-{message.bundle.digest[7:23]}",
            cores=os.cpu_count() or 1,
            cancel=cancel,
        )
        try:
            outcomes = executor.run(Plan(steps, message.steps))
        except Interrupted:
            return Answer(name, {step: Ended("cancelled") for step in message.steps})
        if guard.other:
            return Answer(name, refused=guard.other)
        if guard.lost and remote is not None and remote.no_room:
            return Answer(name, refused=f"its store has no room: {remote.no_room}")
        if guard.lost:
            return Answer(name, refused="it cannot get what the steps need", lost=tuple(sorted(guard.lost)))
        failures = [f"{step}: {found.error}" for step, found in outcomes.items() if found.status == "failed"]
        ended = {}
        for step, found in outcomes.items():
            if isinstance(found.error, StoreError | EnvironmentMissing):  # of this machine, not of the step
                return Answer(name, refused=f"{step}: {found.error.message}")
            if step not in message.steps:
                continue
            if found.key is not None and message.steps[step] != found.key:
                return Answer(name, refused=_other(step, found.key, message.steps[step]))
            error = StepFailed("; ".join(failures)[:4000]) if found.status == "skipped" and failures else found.error
            ended[step] = Ended(found.status, found.outputs, found.notes, found.seconds, error)
        made = [output for step in message.steps for output in outcomes[step].outputs.values() if outcomes[step].ok]
        for output in made if remote is not None else ():
            path = store.path(output.digest)
            if path is None or remote is None or not remote.put(output, path, store):
                return Answer(name, refused=f"what it made cannot be sent to the remote store: {outbox.last}")
    return Answer(name, ended)


def _other(step: str, key: str, wanted: str) -> str:
    from rwkvflow import __version__

    return f"its rwkvflow {__version__} makes another plan: {step} has the key {key[:12]}, not {wanted[:12]}"


class _Guard:
    """Lets a worker carry out what it was sent, and make the environments for it. Nothing else is its business."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.other = ""
        self.lost: set[str] = set()

    def __call__(self, action: Any) -> Any:
        def run(jobs: Sequence[Any], work: Any) -> Any:
            for job in jobs:
                step = job.step.id
                if step in self.message.steps and job.key != self.message.steps[step]:
                    self.other = _other(step, job.key, self.message.steps[step])
                elif step not in self.message.steps and job.step.action != "environment":
                    known = self.message.known.get(step)
                    if known is None or known[0] != job.key:
                        self.other = self.other or f"its plan needs {step}, of which nothing was told"
                    else:
                        self.lost |= {output.digest for output in known[1].outputs.values()}
                else:
                    continue
                return {one.step.id: StepFailed("not carried out here") for one in jobs}
            return action(jobs, work)

        return run


class ToldStore(Remote):
    """A remote store of which only the bytes are asked; what steps made was told with the message."""

    def __init__(self, message: Message, tell: Any) -> None:
        super().__init__(str(message.remote), tell)
        self.id = f"told-{self.id}"
        self._records = dict(message.known.values())
        self._damaged = set(message.damaged)

    def accepts(self, key: str, record: Record) -> bool:
        """Only what was told with this message."""
        known = self._records.get(key)
        return known is not None and known.outputs == record.outputs

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """What was told of a step."""
        record = self._records.get(key)
        return record if record is not None and (wanted is None or wanted.problem(record) is None) else None

    def send(self, key: str, record: Record, store: Any, *, contents: bool) -> bool:
        """Nothing: who sent the message records what was made."""
        return True


# ---- the plan --------------------------------------------------------------------------------------------------


_PLANS: dict[tuple[str, str], Any] = {}  # by store and digest of the documents
_GUARD = threading.Lock()


def _plan(root: str, bundle: Output, store: Any) -> Any:
    from rwkvflow.app.clusters.bundle import plan_of

    with _GUARD:
        if (root, bundle.digest) not in _PLANS:
            if not store.bring([bundle]):
                raise _LostDocument(bundle)
            documents = json.loads(store.path(bundle.digest).read_bytes())
            plan = plan_of(documents, _workspace(documents, bundle.digest, store))
            while len(_PLANS) >= PLANS:
                del _PLANS[next(iter(_PLANS))]
            _PLANS[root, bundle.digest] = plan
        return _PLANS[root, bundle.digest]


def _workspace(documents: Mapping[str, Any], digest: str, store: Any) -> Path:
    """A folder with the files that the documents name, where they name them."""
    from rwkvflow.base.names import checked_path

    folder = Path(store.root) / "cluster" / digest.removeprefix("sha256:")[:32]
    with store.working_on(f"cluster-{folder.name}"):
        if (folder / "whole").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        for entry in documents["files"]:
            output = output_of(entry["output"])
            if not store.bring([output]):
                raise _LostDocument(output)
            place = folder / checked_path(str(entry["place"]))
            place.parent.mkdir(parents=True, exist_ok=True)
            source = store.path(output.digest)
            if source.is_dir():
                shutil.copytree(source, place, symlinks=True)
            else:
                shutil.copyfile(source, place)
        for name in ("recipe", "workflow"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "whole").touch()
    return folder


def _closure(plan: Any, targets: Mapping[str, str]) -> Iterator[Any]:
    """The steps of a plan that these need, in its order. Raises StepFailed where it has no such step."""
    from rwkvflow.plan.plan import needs

    wanted: set[str] = set()
    waiting = list(targets)
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        if name not in plan.steps:
            raise StepFailed(f"its rwkvflow makes another plan: there is no {name}")
        wanted.add(name)
        waiting += [*needs(plan.steps[name]), *plan.steps[name].environments]
    return (step for step in plan if step.id in wanted)
