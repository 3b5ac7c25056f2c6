"""Does a sample of what a remote store said again, and drops everything from whoever said what is not so.

A step is made again in a store of its own, which gets its inputs from the user's and knows nothing of the step itself.
Only steps whose bytes are the same on every machine can show that somebody lied: building and converting. Figures of
a smoke test depend on the processor, and fetched files are checked by their digests anyway.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from rwkvflow.app.explain import standing
from rwkvflow.app.pipeline import Prepared
from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.events import Listener
from rwkvflow.execute.actions import actions, probes
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import expected
from rwkvflow.store.collect import forget_remote, forget_signed
from rwkvflow.store.record import Output, Record, Wanted
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from rwkvflow.store.trust import NEVER, revoke

SAME_EVERYWHERE = frozenset({"engine", "convert"})


@dataclass(frozen=True)
class Said:
    """What a remote store said of a step."""

    step: str
    key: str
    record: Record

    @property
    def by(self) -> str:
        """Who signed it; "" for nobody."""
        return self.record.signature.by if self.record.signature else ""


@dataclass
class Audit:
    """What came of it. `known` is how many records could have been checked."""

    known: int = 0
    same: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    dropped: int = 0
    liars: list[str] = field(default_factory=list)


class Without:
    """A store as another one below it, without what it knows of one step. Nothing is sent to it."""

    id = mark = "audit"

    def __init__(self, store: Store, hidden: str) -> None:
        self._store = store
        self._hidden = hidden

    def accepts(self, key: str, record: Record) -> bool:
        """The store asked that already."""
        return key != self._hidden

    def lookup(self, key: str, wanted: Wanted | None = None) -> Record | None:
        """What the store knows."""
        return None if key == self._hidden else self._store.lookup(key, wanted)

    def has(self, output: Output) -> bool:
        """Whether the store has the bytes, or can get them."""
        return self._store.obtainable(output)

    def bring(self, output: Output, store: Store) -> bool:
        """Make them known: a file by its place, a folder as a copy."""
        if not self._store.bring([output]) or (path := self._store.path(output.digest)) is None:
            return False
        if output.kind == "file":
            store.adopt(path, output.digest)
            return True
        with store.scratch() as folder:
            shutil.copytree(path, folder / "tree", symlinks=True)
            return store.put_tree(folder / "tree").digest == output.digest

    def send(self, key: str, record: Record, store: Store, *, contents: bool) -> bool:
        """Nothing is sent."""
        return False


def said(prepared: Prepared) -> list[Said]:
    """The steps of a plan that a remote store's word is taken for, and that can be checked."""
    remote, store = prepared.store.remote, prepared.store
    if not isinstance(remote, Remote):
        raise UsageError("without a remote store there is nothing to check", remedy="name it with --remote")
    found = []
    for row in standing(prepared):
        step = prepared.plan.steps[row.step]
        if row.key is None or step.stage not in SAME_EVERYWHERE:
            continue
        record = store.lookup(row.key, expected(step))
        mine = record is not None and record.signature and remote.signer and record.signature.by == remote.signer.key
        if record is not None and record.remote and not mine:
            found.append(Said(step.id, row.key, record))
    return found


def audit(prepared: Prepared, share: float, emit: Listener, cancel: threading.Event, *, purge: bool = False) -> Audit:
    """Make a share of the steps again, at least one, chosen so that nobody can foresee which.

    purge: remove the liars' records from the remote store too. Raises UsageError without a remote store.
    """
    known = said(prepared)
    result = Audit(known=len(known))
    chosen = secrets.SystemRandom().sample(known, min(len(known), max(1, math.ceil(len(known) * share))))
    for one in sorted(chosen, key=lambda item: item.step):
        _check(prepared, one, result, emit, cancel)
    _drop(prepared.store, [one for one in chosen if one.step in result.lies], result, purge)
    return result


def _check(prepared: Prepared, one: Said, result: Audit, emit: Listener, cancel: threading.Event) -> None:
    with prepared.store.scratch() as folder:
        store = Store(folder / "store")
        store.remote = Without(prepared.store, one.key)
        made, probing = actions(store, prepared.sandbox), probes(store, prepared.sandbox)
        cores = os.cpu_count() or 1
        executor = LocalExecutor(store, made, probing, emit, run="audit", cores=cores, cancel=cancel)
        try:
            outcome = executor.run(Plan(list(prepared.plan), [one.step]))[one.step]
        except (RwkvflowError, KeyError) as error:
            result.unclear.append(f"{one.step} could not be made again: {error}")
            return
    if not outcome.ok or outcome.key != one.key:
        why = outcome.error or "its inputs came out otherwise"
        result.unclear.append(f"{one.step} could not be made again: {why}")
    elif dict(outcome.outputs) == one.record.outputs:
        result.same.append(one.step)
    else:
        result.lies.append(one.step)


def _drop(store: Store, lies: Sequence[Said], result: Audit, purge: bool) -> None:
    remote = store.remote
    if not isinstance(remote, Remote):
        return
    for by in sorted({one.by for one in lies}):
        if not by:  # of those who did not sign, nobody can be told from another
            result.dropped += forget_remote(store, remote.id)
            result.liars.append("whoever did not sign")
            continue
        steps = ", ".join(sorted(one.step for one in lies if one.by == by))
        revoke(store.root, by, NEVER, f"said what is not so of {steps}")
        result.dropped += forget_signed(store, by)
        result.liars.append(by)
    if purge and lies:
        result.dropped += remote.purge({one.by for one in lies})


def share_of(text: str) -> float:
    """5% or 0.05. Raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise UsageError(f"--sample: {text!a} is no share", remedy="write it as 5% or 0.05, at most 100%")
    return value
