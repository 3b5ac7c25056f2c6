"""What an executor hands to an action, and what it gets back."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.events import Status
from rwkvflow.base.files import no_space
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.store.record import Output


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

    @property
    def ok(self) -> bool:
        """Whether its outputs can be used."""
        return self.status in ("done", "cached")


def failure_of(error: Exception, step: str) -> RwkvflowError:
    """What a command raised, as an error of ours."""
    if isinstance(error, RwkvflowError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(step)
    return RwkvflowError(f"{type(error).__name__}: {error}")
