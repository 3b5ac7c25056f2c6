"""One of several workers: which steps it may carry out, and how the others learn what it made, or why it could not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from rwkvflow.base.errors import StepFailed
from rwkvflow.execute.base import Outcome
from rwkvflow.plan.step import Step, expected
from rwkvflow.store.failures import WORKERS, here, of_the_step, told
from rwkvflow.store.leases import Leases
from rwkvflow.store.record import Record
from rwkvflow.store.store import Store

CLAIMED = frozenset({"sandbox"})  # actions that one of several workers carries out for all
LOOKS = 8  # how often in a claim's life others look whether it is over
LOOK_S = 5.0  # but at least so often
AT_A_TIME = 16  # targets: most of those of one model, which are converted in one read
MOST_OPEN = 64  # targets that a worker has in view: it fetches the inputs of those
MOST_DEAD = 5  # workers that die at a step one after another, before it is taken for what they die of

Item = tuple[Step, str, dict[str, str]]  # step, key, digests of its inputs


class Claims:
    """The claims of a worker on the steps of a plan."""

    def __init__(self, leases: Leases, store: Store, cancel: threading.Event) -> None:
        self.leases, self.store, self.cancel = leases, store, cancel
        self.pause_s = min(LOOK_S, leases.ttl_s / LOOKS)
        self._later: list[Sequence[str]] = []
        self._open: list[str] = []  # targets that were looked at, and have not ended
        self.parked: dict[str, float] = {}  # ids of steps that others are at, and when to look again

    def order(self, targets: Sequence[str]) -> None:
        """Look at these later, a few neighbours at a time, in an order of this worker's own: each is elsewhere."""
        parts = [targets[start : start + AT_A_TIME] for start in range(0, len(targets), AT_A_TIME)]
        random.Random(self.leases.owner).shuffle(parts)  # noqa: S311 - nothing that is made depends on it
        self._later, self._open = parts, []

    def next(self, ended: Callable[[str], bool], *, room: bool) -> Sequence[str]:
        """Steps to look at: those that were left for a while, or, where there is room, more targets."""
        now = time.monotonic()
        if due := [name for name, at in self.parked.items() if at <= now]:
            for name in due:
                del self.parked[name]
            return due
        self._open = [name for name in self._open if not ended(name)]
        if not self._later or not room or len(self._open) >= MOST_OPEN:
            return ()
        found = self._later.pop()
        self._open += found
        return found

    def park(self, step: Step, key: str) -> bool:
        """Leave a step for a while if somebody else is at it. It is asked before its inputs are fetched for nothing."""
        if step.action not in CLAIMED or not self.leases.taken(key):
            return False
        self.parked[step.id] = time.monotonic() + self.pause_s
        return True

    def carry_out(
        self,
        steps: Sequence[Item],
        run: Callable[[Sequence[Item]], Mapping[str, Outcome]],
        asked: Callable[[str], bool],
    ) -> dict[str, Outcome | None]:
        """Carry out those of a batch that nobody else has claimed; None for the others, which are looked at again.

        asked: whether the remote store was asked for what a step made, in vain.
        """
        outcomes: dict[str, Outcome | None] = {step.id: None for step, _, _ in steps}
        if steps[0][0].action not in CLAIMED:
            return outcomes | dict(run(steps))
        places = {step.id: place for step, key, _ in steps if (place := self.leases.claim(key)) is not None}
        with self.leases.held(list(places.values())):
            mine = [item for item in steps if item[0].id in places and (asked(item[0].id) or not self._made(item))]
            outcomes |= (left := self._left(mine, places))
            mine = [item for item in mine if item[0].id not in left]
            if mine:
                outcomes |= run(mine)
            for step, key, _ in mine:
                self._share(step, key, outcomes[step.id])
        return outcomes

    def _made(self, item: Item) -> bool:
        """Whether another worker finished a step before it was claimed here."""
        return self.store.lookup(item[1], expected(item[0])) is not None

    def _left(self, items: Sequence[Item], places: Mapping[str, str]) -> dict[str, Outcome]:
        """Those that are not tried here: enough others have failed at them, or died."""
        found = {}
        for step, key, _ in items:
            if (died := self.leases.died(places[step.id])) >= MOST_DEAD:
                error = StepFailed(
                    f"{died} workers gave no sign of life any more while they were at it",
                    remedy="run it alone, `rwkvflow run --only`, and see what becomes of it; or lower "
                    f"stages.{step.stage}.memory to what the machines have",
                )
                self.leases.failures.add(key, here(error, final=True))
            failures = self.leases.failures.of(key)
            if any(failure.final for failure in failures) or len(failures) >= (step.limits.retries or WORKERS):
                found[step.id] = Outcome("failed", key, error=told(failures))
        return found

    def _share(self, step: Step, key: str, outcome: Outcome | None) -> None:
        """Before a claim is given up, others must be able to see what was made, or why it was not."""
        if outcome is None or (self.cancel.is_set() and not outcome.ok):
            return
        if outcome.ok:
            record = Record(step.id, dict(outcome.outputs), outcome.seconds, dict(outcome.notes))
            self.store.share(key, record, contents=True, again=True)
            self.leases.failures.clear(key)
        elif outcome.error is not None and of_the_step(outcome.error):
            self.leases.failures.add(key, here(outcome.error))
