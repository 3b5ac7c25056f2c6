"""Has the commands of a run carried out by the workers of a cluster, and takes over what they made.

This side decides everything: whose turn it is, what goes in, and whether what comes out counts. A worker gets the
step's key and the records of what it needs; it looks nothing up itself. What it made is in the remote store, under its
hash, before it says so (or in this machine's own store, for a cluster of this machine's); its word is then recorded
here, on condition that nobody recorded another result first.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rwkvflow.base.errors import RwkvflowError, StepFailed
from rwkvflow.base.events import Listener, Status, StepLog, StepProgress, StepStarted
from rwkvflow.execute.base import Outcome
from rwkvflow.execute.cluster.fitness import AWAY, Need
from rwkvflow.execute.cluster.words import Answer, AnswerError, Ended, Message, Told, parse_answer
from rwkvflow.execute.log_file import LogFile
from rwkvflow.plan.plan import Plan, reason
from rwkvflow.plan.step import Ref, Step, expected
from rwkvflow.store.record import Output, Record
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store

TRIES = 4  # of one batch, on different workers, and of getting what one made
WHO_ELSE = "see who else writes to it"
Item = tuple[Step, str, dict[str, str]]  # step, key, digests of its inputs


class Crew(Protocol):
    """Workers. See `execute.cluster.dask`."""

    def capacity(self) -> float:
        """The cores of all who can work."""

    def weight(self, need: Need) -> float:
        """The cores that a step takes."""

    def perform(
        self, message: Message, need: Need, told: Told, cancel: threading.Event, without: Iterable[str]
    ) -> tuple[object, str]:
        """What a worker answers, and its address. Raises RwkvflowError where there is none, or all were lost."""


@dataclass(frozen=True)
class Desk:
    """What of a run those who carry out its steps elsewhere have to know."""

    plan: Plan
    run: str
    emit: Listener
    cancel: threading.Event
    outcome: Callable[[str], Outcome | None]  # of a step, by its id


class Elsewhere:
    """The steps of one run that a cluster carries out."""

    def __init__(
        self,
        store: Store,
        crew: Crew,
        bundle: Sequence[Output],
        *,
        topic: str,
        sandbox: str,
        need: Callable[[Step], Need],
        remote: Remote | None,
        url: str | None,
    ) -> None:
        """bundle: the run's documents, and the files that they name.

        remote, url: where bytes go; None where the workers use this machine's own store.
        """
        self.store, self.crew, self.remote = store, crew, remote
        self._bundle, self._topic, self._sandbox, self._url = bundle, topic, sandbox, url
        self._need = need
        self._guard = threading.Lock()
        self._there: set[str] = set()  # digests that the remote store has, as far as one knows
        self._sending: dict[str, threading.Lock] = {}  # by digest
        self._lacking: set[str] = set()  # steps whose outputs have to be brought here, so that they can be sent
        self._damaged: set[str] = set()
        self._tries: Counter[str] = Counter()  # by key, how often inputs had to be sent again
        self._vain: Counter[tuple[str, str]] = Counter()  # by key and digest, how often it could not be had

    def takes(self, step: Step) -> bool:
        """Whether a cluster carries this step out."""
        return step.action in AWAY

    def capacity(self) -> float:
        """How many cores may be in use there."""
        return self.crew.capacity()

    def weight(self, step: Step) -> float:
        """How many of them a step takes."""
        return self.crew.weight(self._need(step))

    def brings(self) -> bool:
        """Whether what was made elsewhere is here as well."""
        return self.remote is None

    def wants(self, step: Step, plan: Plan) -> dict[str, bool]:
        """The steps whose records a step needs; True where their bytes have to be here too."""
        with self._guard:
            return {name: self.remote is None or name in self._lacking for name in _read(step, plan)}

    # ---- carrying out ------------------------------------------------------------------------------------------

    def carry_out(self, steps: Sequence[Item], desk: Desk) -> dict[str, Outcome | None]:
        """Have a batch carried out. None for a step that has to be looked at again: an input is not in the store."""
        outcomes: dict[str, Outcome | None] = {}
        todo: list[Item] = []
        for item in steps:
            record = self.store.lookup(item[1], expected(item[0]))  # another run may have finished it meanwhile
            if record is not None and self._obtainable(record.outputs.values()):
                outcomes[item[0].id] = self._outcome("cached", item[1], record)
            elif record is not None and any(self._vain[item[1], o.digest] >= TRIES for o in record.outputs.values()):
                error = StepFailed("what it makes does not stay in the remote store", remedy=WHO_ELSE)
                outcomes |= _failed([item], error)
            else:
                todo.append(item)
        if todo and not self._provide([step for step, _, _ in todo], desk):
            return outcomes | {step.id: None for step, _, _ in todo}
        return outcomes | self._perform(todo, desk) if todo else outcomes

    def again(self, key: str, outputs: Iterable[Output]) -> None:
        """Of what a step made, these could not be had from the remote store: it is made again, and written again.

        Several steps may make the same bytes; one spoilt file is then missed by each of them.
        """
        with self._guard:
            for output in outputs:
                self._vain[key, output.digest] += 1
                self._there.discard(output.digest)
                self._damaged.add(output.digest)

    def _perform(self, todo: Sequence[Item], desk: Desk) -> dict[str, Outcome | None]:
        if any(self._tries[key] >= TRIES for _, key, _ in todo):
            return _failed(todo, StepFailed("what it needs does not stay in the remote store", remedy=WHO_ELSE))
        ids, need = [step.id for step, _, _ in todo], self._need(todo[0][0])
        bad: dict[str, str] = {}  # by address of a worker, why another one has to do it
        with contextlib.ExitStack() as stack:
            teller = _Teller(todo, desk, self.store, stack, logs=self.remote is not None)
            for _ in range(TRIES):
                try:
                    text, worker = self.crew.perform(self._message(todo, desk), need, teller, desk.cancel, bad)
                except RwkvflowError as error:
                    return _failed(todo, type(error)(f"{error.message}{_listed(bad)}", remedy=error.remedy))
                teller.begin("")
                try:
                    answer = parse_answer(text, ids)
                except AnswerError as error:
                    bad[worker] = f"its answer is not one: {error}"
                    continue
                if answer.lost and self._look_again(answer, todo, desk):
                    return dict.fromkeys(ids)
                found = answer.refused or self._taken(answer, todo, desk)
                if isinstance(found, dict):
                    return found
                bad[worker] = found
                teller.log(ids[0], f"{answer.worker}: {found}; another worker is asked")
        return _failed(todo, StepFailed(f"no worker carried it out:{_listed(bad)}"))

    def _message(self, todo: Sequence[Item], desk: Desk) -> Message:
        known: dict[str, tuple[str, Record]] = {}
        waiting = [name for step, _, _ in todo for name in _needed(step, desk.plan)]
        while waiting:
            name = waiting.pop()
            outcome = desk.outcome(name)
            if name in known or outcome is None or not outcome.ok or outcome.key is None:
                continue
            known[name] = (outcome.key, Record(name, dict(outcome.outputs)))
            waiting += _needed(desk.plan.steps[name], desk.plan)
        with self._guard:
            damaged = tuple(sorted(self._damaged))
        return Message(
            uuid.uuid4().hex,
            self._topic,
            self._bundle[0],
            {step.id: key for step, key, _ in todo},
            dict(sorted(known.items())),
            self._url,
            None if self.remote is not None else str(self.store.root),
            self._sandbox,
            damaged,
        )

    # ---- what goes in ------------------------------------------------------------------------------------------

    def _provide(self, steps: Sequence[Step], desk: Desk) -> bool:
        """See to it that the remote store has what these steps need; False where some of it must first be here."""
        if self.remote is None:
            return True
        whole = True
        for name in dict.fromkeys(name for step in steps for name in _read(step, desk.plan)):
            outcome = desk.outcome(name)
            if outcome is None or not outcome.ok:
                continue  # of a step that does without
            for output in outcome.outputs.values():
                if not self._sent(output):
                    with self._guard:
                        self._lacking.add(name)
                    whole = False
        return whole

    def _sent(self, output: Output) -> bool:
        with self._guard:
            sending = self._sending.setdefault(output.digest, threading.Lock())
        with sending:  # steps that begin together need the same files, each of which is sent once
            return self._send(output)

    def _send(self, output: Output) -> bool:
        if self.remote is None or output.digest in self._there:
            return True
        path = self.store.path(output.digest)
        if path is not None:
            there = self.remote.put(output, path, self.store)
            if not there:
                raise StepFailed("what it needs cannot be sent to the remote store", remedy="see what that said above")
        else:
            there = self.remote.has(output)
        if there:
            with self._guard:
                self._there.add(output.digest)
        return there

    def _look_again(self, answer: Answer, todo: Sequence[Item], desk: Desk) -> bool:
        """Whether something that a worker could not get, an input or a document of the run, has to be sent anew."""
        names = {name for step, _, _ in todo for name in _read(step, desk.plan)}
        found = False
        for output in self._bundle:
            if output.digest in answer.lost and self.remote is not None:
                found = True
                with self._guard:
                    self._there.discard(output.digest)
                self.remote.doubt([output], damaged=True)
                self._sent(output)
        for name in names:
            outcome = desk.outcome(name)
            outputs = outcome.outputs.values() if outcome is not None and outcome.ok else ()
            for output in outputs:
                if output.digest in answer.lost and self.remote is not None:
                    found = True
                    with self._guard:
                        self._there.discard(output.digest)
                        self._lacking.add(name)
                    self.remote.doubt([output], damaged=True)
        with self._guard:
            for _, key, _ in todo:
                self._tries[key] += found
        return found

    # ---- what comes out ----------------------------------------------------------------------------------------

    def _taken(self, answer: Answer, todo: Sequence[Item], desk: Desk) -> dict[str, Outcome | None] | str:
        """The outcomes, or why the answer does not count."""
        if not desk.cancel.is_set() and any(ended.status == "cancelled" for ended in answer.steps.values()):
            return "it was told to end while it was at it"  # not by this run, but by who ended or retired the worker
        outcomes: dict[str, Outcome | None] = {}
        for step, key, _ in todo:
            ended = answer.steps[step.id]
            if ended.status not in ("done", "cached"):
                outcomes[step.id] = Outcome(
                    "cancelled" if ended.status == "cancelled" else "failed",
                    key,
                    error=ended.error,
                    seconds=ended.seconds,
                )
                continue
            record = Record(step.id, dict(ended.outputs), ended.seconds, dict(ended.notes))
            problem = expected(step).problem(record) or self._not_there(key, step, ended)
            if problem:
                return f"what it says of {step.id} is not so: {problem}"
            outcomes[step.id] = self._outcome("done", key, record)
        for step, key, digests in todo:
            outcome = outcomes[step.id]
            if outcome is not None and outcome.ok:
                self._record(step, key, outcome)
                self.store.remember(desk.run, step.id, step.parts(digests))
        return outcomes

    def _not_there(self, key: str, step: Step, ended: Ended) -> str | None:
        if self.remote is None:
            mine = self.store.lookup(key, expected(step))
            same = mine is not None and mine.outputs == dict(ended.outputs)
            return None if same and all(map(self.store.present, ended.outputs.values())) else "it is not in the store"
        self.remote.doubt(ended.outputs.values(), damaged=False)  # what was there before was written again
        if not all(self.remote.has(output) for output in ended.outputs.values()):
            return "it is not in the remote store"
        return None

    def _record(self, step: Step, key: str, outcome: Outcome) -> None:
        """What was made counts from here on: here, and for all who share the remote store."""
        record = Record(step.id, dict(outcome.outputs), outcome.seconds, dict(outcome.notes))
        if self.remote is None:
            self.store.share(key, record, contents=True, again=True)
            return
        with self._guard:
            for output in record.outputs.values():
                self._damaged.discard(output.digest)
                self._there.add(output.digest)
        self.store.record(key, record)
        self.store.share(key, record, contents=False, again=True)

    def _obtainable(self, outputs: Iterable[Output]) -> bool:
        if self.remote is None:
            return all(map(self.store.present, outputs))
        return all(map(self.store.obtainable, outputs))

    def _outcome(self, status: Status, key: str, record: Record) -> Outcome:
        here = self.remote is None
        return Outcome(status, key, record.outputs, record.notes, seconds=record.seconds, here=here)


class _Teller:
    """Tells a run's listeners what a worker tells, as if it were done here."""

    def __init__(
        self, todo: Sequence[Item], desk: Desk, store: Store, stack: contextlib.ExitStack, *, logs: bool
    ) -> None:
        """logs: whether the store keeps the steps' logs from here; else the workers write them there themselves."""
        self._todo, self._desk = todo, desk
        self._begun = False
        self._logs: dict[str, LogFile] = {}
        for step, key, _ in todo if logs else ():
            place = store.log_path(key)
            file = stack.enter_context(place.open("w", encoding="utf-8", errors="backslashreplace"))
            self._logs[step.id] = LogFile(file)
        self._why = {step.id: reason(step.parts(digests), store.recall(desk.run, step.id)) for step, _, digests in todo}
        self._ids = {step.id for step, _, _ in todo}
        self._first = todo[0][0].id

    def __call__(self, event: Mapping[str, object]) -> None:
        kind = event["kind"]
        if kind == "started":
            self.begin(str(event["worker"]))
        elif kind == "log":
            step, lines = self._of(event), event["lines"]
            assert isinstance(lines, list)  # noqa: S101 - parse_event looked
            for line in lines:
                self.log(step, line)
        elif kind == "progress":
            done, total = event["done"], event["total"]
            assert isinstance(done, float)  # noqa: S101
            total = total if isinstance(total, float) else None
            self._desk.emit(StepProgress(self._of(event), done, total, str(event["unit"]), str(event["label"])))

    def begin(self, worker: str) -> None:
        """A worker has begun; if another had before, it was lost."""
        if self._begun and worker:
            self.log(self._first, f"begun again on {worker}")
        if not self._begun:
            self._begun = True
            for step, _, _ in self._todo:
                self._desk.emit(StepStarted(step.id, step.stage, self._why[step.id], step.batch or ""))
            if worker:
                self.log(self._first, f"on {worker}")

    def log(self, step: str, line: str) -> None:
        """A line of a step's log."""
        log = self._logs.get(step)
        if log is None or log.keep(line):
            self._desk.emit(StepLog(step, line))

    def _of(self, event: Mapping[str, object]) -> str:
        step = str(event["step"])
        return step if step in self._ids else self._first


def _failed(todo: Sequence[Item], error: RwkvflowError) -> dict[str, Outcome | None]:
    return {step.id: Outcome("failed", key, error=error) for step, key, _ in todo}


def _listed(bad: Mapping[str, str]) -> str:
    return "".join(f"\n    {name}: {why}" for name, why in bad.items())


def _read(step: Step, plan: Plan) -> list[str]:
    """The steps whose bytes a worker needs: of the inputs, and of what the environment is made of."""
    found = [value.step for value in step.inputs.values() if isinstance(value, Ref)]
    for name in step.environments:
        found += [name, *(value.step for value in plan.steps[name].inputs.values() if isinstance(value, Ref))]
    return list(dict.fromkeys(found))


def _needed(step: Step, plan: Plan) -> list[str]:
    """The steps whose records it needs."""
    return list(dict.fromkeys([*_read(step, plan), *step.after]))
