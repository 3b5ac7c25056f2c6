"""One of several workers: which steps it may carry out, and how the others learn what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rwkvflow.execute.base import Outcome
from rwkvflow.plan.step import Step, expected
from rwkvflow.store.leases import Leases
from rwkvflow.store.record import Record
from rwkvflow.store.store import Store

CLAIMED = frozenset({"sandbox"})  # actions that one of several workers carries out for all
LOOKS = 8  # how often in a claim's life others look whether it is over
LOOK_S = 5.0  # but at least so often

Item = tuple[Step, str, dict[str, str]]  # step, key, digests of its inputs


class Claims:
    """The claims of a worker on the steps of a plan."""

    def __init__(self, leases: Leases, store: Store) -> None:
        self.leases, self.store = leases, store
        self.pause_s = min(LOOK_S, leases.ttl_s / LOOKS)

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
            if mine:
                outcomes |= run(mine)
            for step, key, _ in mine:
                self._share(step, key, outcomes[step.id])
        return outcomes

    def _made(self, item: Item) -> bool:
        """Whether another worker finished a step before it was claimed here."""
        return self.store.lookup(item[1], expected(item[0])) is not None

    def _share(self, step: Step, key: str, outcome: Outcome | None) -> None:
        """Before a claim is given up, others must be able to see what was made."""
        if outcome is not None and outcome.ok:
            record = Record(step.id, dict(outcome.outputs), outcome.seconds, dict(outcome.notes))
            self.store.share(key, record, contents=True, again=True)
