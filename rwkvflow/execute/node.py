"""A step as the scheduler sees it: what state it is in, how much of it is wanted, and who waits for it.

    IDLE     ─▶ READY      its inputs are there, and its command has to run
    IDLE     ─▶ RUNNING    the remote store is asked for what it made elsewhere
    IDLE     ─▶ SETTLED    it was done before, or can never be
    READY    ─▶ RUNNING    there is room for it
    RUNNING  ─▶ SETTLED    its command ended, well or not
    RUNNING  ─▶ IDLE       the remote store was asked: it is looked at again
    SETTLED  ─▶ IDLE       more of it is wanted than is there

A step that nobody wants stays IDLE, as does one that waits for others.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from rwkvflow.execute.base import Outcome
from rwkvflow.plan.step import Step


class Strength(enum.IntEnum):
    """How much of a step is wanted, or there."""

    NOTHING = 0
    RECORD = 1  # the digests of its outputs
    PRESENT = 2  # the outputs themselves


class StepState(enum.Enum):
    """Where a step is; see the picture above."""

    IDLE = "not wanted, or waiting for others"
    READY = "all that its command needs is there"
    RUNNING = "its command runs, or its outputs are being brought"
    SETTLED = "it has an outcome"


@dataclass(slots=True)
class StepNode:
    """One step of a run. The scheduler's thread alone writes it.

    wanted     the most that anyone asked for
    level      what of it is known to be there
    waiting    ids of the steps to look at when this one settles, in order, so that runs read alike
    key        of the command that is to run or runs, with the digests of its inputs
    cores      what it counts for while it runs
    brought    whether the remote store was asked for its outputs already
    not_before when it may be started, by the monotonic clock: another worker has claimed it
    """

    step: Step
    state: StepState = StepState.IDLE
    wanted: Strength = Strength.NOTHING
    level: Strength = Strength.NOTHING
    outcome: Outcome | None = None
    waiting: dict[str, None] = field(default_factory=dict)
    key: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    cores: float = 0.0
    brought: bool = False
    not_before: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.outcome is not None and not self.outcome.ok

    def meets(self, strength: Strength) -> bool:
        """Whether who wants that much need not wait: it is there, or it can never be."""
        return self.outcome is not None and (self.failed or self.level >= strength)
