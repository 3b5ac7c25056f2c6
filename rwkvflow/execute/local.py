"""Carries out a plan with threads on this machine.

The scheduler works by demand: a step is looked at only when something wants its result. Wanting comes in two strengths.
RECORD wants the digests of the outputs, for which the index is enough; PRESENT wants the bytes (or the image, or the
published folder) to be there, and has them fetched from the remote store where that has them. So a run in which nothing
changed touches neither checkpoints nor Docker, and an image that was removed is made again only when a command has to
run in it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rwkvflow.base.errors import Interrupted, RwkvflowError, StepFailed
from rwkvflow.base.events import Listener, StepLog, StepProgress, StepStarted
from rwkvflow.execute.base import Action, Job, Made, Outcome, Probe, Work, failure_of, finished, keep, stopped
from rwkvflow.execute.claims import CLAIMED, Claims
from rwkvflow.execute.cluster.elsewhere import Desk, Elsewhere
from rwkvflow.execute.log_file import LogFile
from rwkvflow.execute.node import StepNode, StepState, Strength
from rwkvflow.execute.sources import check_unchanged
from rwkvflow.plan.plan import Plan, input_digests, needs, reason
from rwkvflow.plan.step import LocalInput, Ref, Step, expected, key_of
from rwkvflow.store.leases import Leases
from rwkvflow.store.record import Output, Record
from rwkvflow.store.store import Store

POLL_SECONDS = 0.2
AWAY_THREADS = 256  # each waits for one command of a cluster
REFETCHED = frozenset({"fetch", "wheels"})  # actions whose outputs anyone can fetch again by their hash: never shared


class LocalExecutor:
    """Runs one plan once. `cores` bounds what runs at the same time; see `Step.limits.cores`.

    With `leases` it is one of several workers that share the plan: a step whose result goes into the remote store is
    carried out by whoever claims it, and of the targets only the records are wanted, of which it looks at a few a time.

    With `elsewhere`, commands are carried out by a cluster, and of what they need only the records are wanted here.
    """

    def __init__(
        self,
        store: Store,
        actions: Mapping[str, Action],
        probes: Mapping[str, Probe],
        emit: Listener,
        *,
        run: str,
        cores: int,
        cancel: threading.Event | None = None,
        leases: Leases | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.store = store
        self.actions = actions
        self.probes = probes
        self.emit = emit
        self.run_id = run
        self.cores = cores
        self.cancel = cancel or threading.Event()
        self.claims = Claims(leases, store, self.cancel) if leases else None
        self.elsewhere = elsewhere
        self._nodes: dict[str, StepNode] = {}  # by step id
        self._ready: dict[str, list[StepNode]] = {}  # those that are READY by batch, in the order of becoming it
        self._weights: dict[str, float] = {}  # by batch, what a command for it takes
        self._running: dict[str, StepNode] = {}  # those that are RUNNING
        self._ended: queue.Queue[dict[str, Outcome | None]] = queue.Queue()  # None: look at it again

    def run(self, plan: Plan) -> dict[str, Outcome]:
        """Carry out what the targets need. Returns how each step that was looked at ended; raises Interrupted."""
        self._nodes = {name: StepNode(step) for name, step in plan.steps.items()}
        self._work = deque(plan.targets if self.claims is None else ())
        self._desk = Desk(plan, self.run_id, self.emit, self.cancel, lambda name: self._nodes[name].outcome)
        if self.claims:
            self.claims.order(plan.targets)
        for target in plan.targets:
            self._nodes[target].wanted = Strength.PRESENT if self.claims is None else Strength.RECORD
        threads = max(8, self.cores) + (AWAY_THREADS if self.elsewhere else 0)
        with ThreadPoolExecutor(max_workers=threads) as pool, ThreadPoolExecutor(max_workers=2) as sharing:
            self._pool, self._sharing = pool, sharing
            try:
                while True:
                    while self._work:
                        self._advance(self._work.popleft())
                    self._start()
                    if self._look_further():
                        continue
                    if not self._running and not self._ready and not (self.claims and self.claims.parked):
                        break
                    self._collect()
            except BaseException:
                self.cancel.set()
                sharing.shutdown(wait=False, cancel_futures=True)
                raise
        stuck = [target for target in plan.targets if self._nodes[target].outcome is None]
        if stuck:
            raise RwkvflowError(f"a flaw in the scheduler: {', '.join(stuck)} never ended")
        return {name: node.outcome for name, node in self._nodes.items() if node.outcome is not None}

    # ---- demand ------------------------------------------------------------------------------------------------

    def _want(self, name: str, strength: Strength, by: str) -> bool:
        """Raise the demand on a step; True when it is met (or can never be)."""
        node = self._nodes[name]
        if node.meets(strength):
            return True
        node.waiting[by] = None
        if node.wanted < strength or node.outcome is None:
            node.wanted = max(strength, node.wanted)
            self._work.append(name)
        return False

    def _advance(self, name: str) -> None:
        node = self._nodes[name]
        if node.state in (StepState.READY, StepState.RUNNING):
            return
        if node.state is StepState.SETTLED:
            if node.meets(node.wanted):
                return
            node.state = StepState.IDLE
        step = node.step
        met = [self._want(need, Strength.RECORD, name) for need in needs(step)]  # all of them, so that all start
        if not all(met) or self._blocked(step):
            return
        digests = input_digests(step, self._digest)
        if digests is None:
            self._settle(node, Outcome("skipped", error=StepFailed("an input does not exist")))
            return
        parts = step.parts(digests)
        key = key_of(parts)
        record = self.store.lookup(key, expected(step))
        if record is not None and self._usable(node, key, record):
            self.store.remember(self.run_id, name, parts)
            if node.level is Strength.PRESENT:
                self._share(step, key, record)
            self._settle(node, Outcome("cached", key, record.outputs, record.notes, seconds=record.seconds))
            return
        if record is not None and self._elsewhere(node, key, record):
            node.brought, node.state, node.cores = True, StepState.RUNNING, 0.0
            self._running[name] = node
            self._pool.submit(self._bring, name, key, record)
            return
        wanted = self._read(step)
        there = all(self._nodes[need].level is Strength.PRESENT for need in wanted)
        if self.claims and not there and self.claims.park(step, key):
            return
        met = [self._want(need, strength, name) for need, strength in wanted.items()]
        if all(met) and not self._blocked(step):
            node.key, node.digests, node.state = key, digests, StepState.READY
            batch = step.batch or name
            self._ready.setdefault(batch, []).append(node)
            self._weights[batch] = max(self._weights.get(batch, 0.0), self._cores(step))

    def _away(self, step: Step) -> Elsewhere | None:
        """Who carries a step out, if not this process."""
        return self.elsewhere if self.elsewhere is not None and self.elsewhere.takes(step) else None

    def _read(self, step: Step) -> dict[str, Strength]:
        """The steps that a step's command reads, and how much of them has to be here."""
        if away := self._away(step):
            wants = away.wants(step, self._desk.plan)
            return {name: Strength.PRESENT if here else Strength.RECORD for name, here in wants.items()}
        refs = [value.step for value in step.inputs.values() if isinstance(value, Ref)]
        return dict.fromkeys((*refs, *step.environments), Strength.PRESENT)

    def _usable(self, node: StepNode, key: str, record: Record) -> bool:
        there = self._intact(node.step, key, record.outputs)
        if there:
            node.level = Strength.PRESENT
        elif node.wanted <= Strength.RECORD:
            node.level = Strength.RECORD
        return there or node.wanted <= Strength.RECORD

    def _elsewhere(self, node: StepNode, key: str, record: Record) -> bool:
        """Whether the remote store may have what a step made; asked once a step."""
        probe = self.probes.get(node.step.action)
        return (
            self.store.remote is not None
            and not node.brought
            and (probe is None or probe(node.step, key, record.outputs))
        )

    def _bring(self, name: str, key: str, record: Record) -> None:
        """In a worker thread. Whatever comes of it, the step is looked at again."""
        with contextlib.suppress(Exception):
            lost = [output for output in record.outputs.values() if not self.store.bring([output])]
            if lost and (away := self._away(self._nodes[name].step)):
                away.again(key, lost)
        self._ended.put({name: None})

    def _share(self, step: Step, key: str, record: Record, *, again: bool = False) -> None:
        if self.store.remote is not None and step.stage != "publish" and not self.cancel.is_set():
            contents = step.action not in REFETCHED
            self._sharing.submit(self.store.share, key, record, contents=contents, again=again)

    def _intact(self, step: Step, key: str, outputs: Mapping[str, Output]) -> bool:
        probe = self.probes.get(step.action)
        return all(self.store.present(output) for output in outputs.values()) and (
            probe is None or probe(step, key, outputs)
        )

    def _blocked(self, step: Step) -> bool:
        """Skip a step when something that it cannot do without has failed."""
        if step.tolerant:
            return False
        for name in (*needs(step), *step.environments):
            outcome = self._nodes[name].outcome
            if outcome is not None and not outcome.ok:
                why = StepFailed(f"{name} {outcome.status}")
                self._settle(self._nodes[step.id], Outcome("skipped", error=why))
                return True
        return False

    def _digest(self, ref: Ref) -> str | None:
        outcome = self._nodes[ref.step].outcome
        output = outcome.outputs.get(ref.output) if outcome is not None and outcome.ok else None
        return output.digest if output else None

    def _settle(self, node: StepNode, outcome: Outcome) -> None:
        known = node.outcome is not None and outcome.status == "cached"
        if known and node.outcome is not None:
            outcome = replace(outcome, status=node.outcome.status)  # "done": made elsewhere in this run, and brought
        node.outcome, node.state = outcome, StepState.SETTLED
        if not node.meets(node.wanted):
            self._work.append(node.step.id)
        if not known:
            self.emit(finished(node.step, outcome))
        self._work.extend(node.waiting)
        node.waiting = {}

    # ---- running -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start what is ready and fits. Steps of one batch go together. Thousands may be ready, and little fit."""
        here = [node for node in self._running.values() if not self._away(node.step)]
        waiting = any(node.step.limits.beside for node in here)
        used = {False: sum(node.cores for node in here)}
        used[True] = sum(node.cores for node in self._running.values()) - used[False]  # elsewhere
        for name, cores in list(self._weights.items()):
            self._check_cancelled()
            nodes = self._ready[name]
            crew = self._away(nodes[0].step)
            away, beside = crew is not None, crew is None and nodes[0].step.limits.beside
            room = crew.capacity() if crew else self.cores
            fits = not waiting if beside else not used[away] or used[away] + cores <= room
            if not fits or (self.claims and any(node.not_before > time.monotonic() for node in nodes)):
                continue
            del self._ready[name], self._weights[name]
            taken = 0.0 if beside else cores
            used[away], waiting = used[away] + taken, waiting or beside
            for node in nodes:
                node.cores = taken if node is nodes[0] else 0.0
                node.state = StepState.RUNNING
                self._running[node.step.id] = node
            self._pool.submit(self._carry_out, [(node.step, node.key, dict(node.digests)) for node in nodes])

    def _cores(self, step: Step) -> float:
        if away := self._away(step):
            return away.weight(step)
        return float(self.cores) if step.limits.cores is None else min(step.limits.cores, self.cores)

    def _collect(self) -> None:
        """Wait for the next command to end. Ctrl-C arrives here, in the main thread."""
        while True:
            try:
                outcomes = self._ended.get(timeout=POLL_SECONDS)
                break
            except queue.Empty:
                if self.claims and (self._ready or self.claims.parked):
                    outcomes = {}  # others have claimed these: it may be time to look again
                    break
        for name, outcome in outcomes.items():
            node = self._running.pop(name)
            if outcome is None:
                node.not_before = time.monotonic() + self.claims.pause_s if self.claims else 0.0
                node.state = StepState.IDLE
                self._work.append(name)
                continue
            node.level = Strength.PRESENT if outcome.here else Strength.RECORD
            node.brought = node.brought and outcome.here
            self._settle(node, outcome)
        self._check_cancelled()

    def _look_further(self) -> bool:
        """One of several workers looks at what others are at once more, and at more targets while it has room."""
        if self.claims is None or not self._ended.empty():
            return False
        self._check_cancelled()
        room = sum(node.cores for node in self._running.values()) < self.cores
        found = self.claims.next(lambda name: self._nodes[name].outcome is not None, room=room)
        self._work.extend(found)
        return bool(found)

    def _check_cancelled(self) -> None:
        if self.cancel.is_set():
            raise Interrupted("interrupted; what is finished is kept, run the same command to go on")

    def _carry_out(self, steps: Sequence[tuple[Step, str, dict[str, str]]]) -> None:
        """In a worker thread: never raises, always reports."""
        start = time.monotonic()
        outcomes: Mapping[str, Outcome | None]
        try:
            if away := self._away(steps[0][0]):
                outcomes = away.carry_out(steps, self._desk)
            elif self.claims is None:
                outcomes = self._locked_run(steps, start)
            else:
                asked = lambda name: self._nodes[name].brought  # noqa: E731
                outcomes = self.claims.carry_out(steps, lambda mine: self._locked_run(mine, start), asked)
        except Exception as error:  # a flaw of ours must not hang the run
            outcomes = {step.id: Outcome("failed", key, error=failure_of(error, step.id)) for step, key, _ in steps}
        self._ended.put(stopped(outcomes) if self.cancel.is_set() else dict(outcomes))

    def _locked_run(self, steps: Sequence[tuple[Step, str, dict[str, str]]], start: float) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        with contextlib.ExitStack() as stack:
            for _, key, _ in sorted(steps, key=lambda item: item[1]):  # one order for all processes: no deadlock
                stack.enter_context(self.store.working_on(key))
            todo = []
            for step, key, digests in steps:
                record = self.store.lookup(key, expected(step))  # another run may have finished it while we waited
                if record is not None and self._intact(step, key, record.outputs):
                    outcomes[step.id] = Outcome("cached", key, record.outputs, record.notes, seconds=record.seconds)
                else:
                    todo.append((step, key, digests))
            if not todo:
                return outcomes
            for step, _, digests in todo:
                why = reason(step.parts(digests), self.store.recall(self.run_id, step.id))
                self.emit(StepStarted(step.id, step.stage, why, step.batch or ""))
            attempts = todo[0][0].limits.retries + 1
            for attempt in range(1, attempts + 1):
                outcomes |= self._attempt(todo, start)
                todo = [item for item in todo if not outcomes[item[0].id].ok]
                if not todo or attempt == attempts or self.cancel.is_set():
                    break
                for step, _, _ in todo:
                    self.emit(StepLog(step.id, f"attempt {attempt} of {attempts} failed: {outcomes[step.id].error}"))
                self.cancel.wait(min(2.0**attempt, 30.0))
        return outcomes

    def _attempt(self, steps: Sequence[tuple[Step, str, dict[str, str]]], start: float) -> dict[str, Outcome]:
        with self.store.scratch() as folder, contextlib.ExitStack() as stack:
            for step, _, _ in steps:
                check_unchanged(step)
            jobs = [self._job(stack, *item) for item in steps]
            work = Work(folder, steps[0][0].limits, self.cancel)
            results = self.actions[steps[0][0].action](jobs, work)
            for step, _, _ in steps:
                if step.action != "sandbox":  # there, inputs are compared anyway
                    check_unchanged(step)
            outcomes = {}
            for job, (step, key, digests) in zip(jobs, steps, strict=True):
                made = results.get(step.id, StepFailed("it ended without a result"))
                if not isinstance(made, Made):
                    outcomes[step.id] = Outcome("failed", key, error=made, seconds=time.monotonic() - start)
                    continue
                outputs = {name: keep(self.store, job, name, made) for name in step.outputs}
                seconds = round(time.monotonic() - start, 3)
                record = Record(step.id, outputs, seconds, dict(made.notes))
                self.store.record(key, record)
                if self.claims is None or step.action not in CLAIMED:
                    self._share(step, key, record, again=True)
                self.store.remember(self.run_id, step.id, step.parts(digests))
                outcomes[step.id] = Outcome("done", key, outputs, made.notes, seconds=seconds)
        return outcomes

    def _job(self, stack: contextlib.ExitStack, step: Step, key: str, digests: dict[str, str]) -> Job:
        inputs = {}
        for name, digest in digests.items():
            value = step.inputs[name]
            path = value.path if isinstance(value, LocalInput) else self.store.path(digest)
            if path is None:
                raise StepFailed(f"{step.id}: its input {name} vanished from the store", remedy="run again")
            inputs[name] = path
        environment, consumers = (self._tag(name) if name else None for name in (step.environment, step.consumers))
        file = stack.enter_context(self.store.log_path(key).open("w", encoding="utf-8", errors="backslashreplace"))
        kept = LogFile(file)

        def log(line: str) -> None:
            if kept.keep(line):
                self.emit(StepLog(step.id, line))

        def progress(done: float, total: float | None, unit: str, label: str) -> None:
            self.emit(StepProgress(step.id, done, total, unit, label))

        return Job(step, key, environment, inputs, digests, kept.keep, log, progress, consumers)

    def _tag(self, name: str) -> str | None:
        outcome = self._nodes[name].outcome
        return outcome.key if outcome else None
