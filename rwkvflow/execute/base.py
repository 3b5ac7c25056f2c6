"""What an executor hands to an action, and what it gets back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvflow.base.errors import RwkvflowError, StepFailed
from rwkvflow.base.events import Status, StepFinished
from rwkvflow.base.files import is_full, no_space
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.store.record import Output
from rwkvflow.store.store import Store


@dataclass(frozen=True)
class Job:
    """A step that is to be carried out now: its inputs are there."""

    step: Step
    key: str
    environment: str | None  # tag of the environment, the key of the step that made it
    inputs: Mapping[str, Path]
    digests: Mapping[str, str]
    keep: Callable[[str], object]  # a line into the step's log file
    log: Callable[[str], None]  # the same, and told to listeners
    progress: Callable[[float, float | None, str, str], None]  # done, total, unit, label
    consumers: str | None = None  # tag of the environment that artifacts are run in, where it is another


@dataclass(frozen=True)
class Work:
    """What the jobs of one command share."""

    folder: Path  # scratch on the store's file system: what is made here is moved into the store without copying
    limits: StepLimits
    cancel: threading.Event


@dataclass(frozen=True)
class Product:
    """An output that an action made."""

    path: Path
    digest: str | None = None  # where the maker is trusted to have hashed what it wrote
    external: bool = False  # leave it where it is: a file of the user's


@dataclass(frozen=True)
class Made:
    """What a job made: all its outputs, and figures a person would like to see."""

    outputs: Mapping[str, Product]
    notes: Mapping[str, str] = field(default_factory=dict)


Action = Callable[[Sequence[Job], Work], Mapping[str, "Made | RwkvflowError"]]
Probe = Callable[[Step, str, Mapping[str, Output]], bool]  # step, key, outputs: is what it made outside still there?


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    status: Status
    key: str | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    error: RwkvflowError | None = None
    seconds: float = 0.0
    here: bool = True  # whether this machine has what it made

    @property
    def ok(self) -> bool:
        """Whether its outputs can be used."""
        return self.status in ("done", "cached")


def keep(store: Store, job: Job, name: str, made: Made) -> Output:
    """Put an output into the store. Raises StepFailed where there is none."""
    product = made.outputs.get(name)
    if product is None or not product.path.exists():
        raise StepFailed(f"{job.step.id} ended well but made no {name}")
    if product.external:
        return store.adopt(product.path, product.digest or "")
    if product.path.is_dir():
        return store.put_tree(product.path)
    return store.put_file(product.path, product.digest)


def failure_of(error: Exception, step: str) -> RwkvflowError:
    """What a command raised, as an error of ours."""
    if isinstance(error, RwkvflowError):
        return error
    if is_full(error):
        return no_space(step)
    return RwkvflowError(f"{type(error).__name__}: {error}")


def stopped(outcomes: Mapping[str, Outcome | None]) -> dict[str, Outcome | None]:
    """The same, where the run was interrupted: what did not end well was cancelled."""
    return {
        name: outcome if outcome is None or outcome.ok else Outcome("cancelled", outcome.key)
        for name, outcome in outcomes.items()
    }


def finished(step: Step, outcome: Outcome) -> StepFinished:
    """The event that tells how a step ended."""
    return StepFinished(
        step.id,
        step.stage,
        outcome.status,
        outcome.seconds,
        str(outcome.error) if outcome.error else "",
        {key: output.digest for key, output in outcome.outputs.items()},
        dict(outcome.notes),
        outcome.key or "",
    )
