"""What happened, typed. Progress displays, the JSON lines log and reports listen; nothing else prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rwkvflow.base.text import json_shown, shown

Status = Literal["done", "cached", "failed", "skipped", "cancelled"]


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_json(self) -> str:
        """One line of JSON, fit for a terminal: {"event": class name, ...fields}."""
        return json_shown(json.dumps({"event": type(self).__name__, **dataclasses.asdict(self)}, ensure_ascii=False))


@dataclass(frozen=True)
class RunStarted(Event):
    """A run has been planned and begins."""

    recipe: str
    sandbox: str
    reason: str  # why this sandbox was taken
    steps: int


@dataclass(frozen=True)
class StepStarted(Event):
    """A step that is not in the store begins."""

    step: str
    stage: str
    why: str  # why it was not in the store
    batch: str = ""  # steps of one batch are carried out by one command, whose log is told as that of the first of them


@dataclass(frozen=True)
class StepProgress(Event):
    """How far a step has come."""

    step: str
    done: float
    total: float | None  # None: unknown
    unit: str = ""  # "B" for bytes, "" for a count
    label: str = ""


@dataclass(frozen=True)
class StepLog(Event):
    """One line that a step's command printed."""

    step: str
    line: str


@dataclass(frozen=True)
class StepFinished(Event):
    """A step has ended, in whatever way."""

    step: str
    stage: str
    status: Status
    seconds: float
    message: str = ""  # for failed and skipped: what went wrong, with its remedy
    outputs: dict[str, str] = field(default_factory=dict)  # output name -> "sha256:..."
    notes: dict[str, str] = field(default_factory=dict)  # what a person would like to see, e.g. smoke figures
    key: str = ""  # of the step, where it is known; names its log in the store


@dataclass(frozen=True)
class Notice(Event):
    """Something worth telling that belongs to no step."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class RunFinished(Event):
    """A run has ended; the numbers count steps."""

    done: int
    cached: int
    failed: int
    skipped: int
    seconds: float
    published: tuple[str, ...] = ()  # where releases now stand


E = TypeVar("E", bound=Event)


def fit_to_show(event: E) -> E:
    """The same event with all text in it fit for a terminal."""
    return dataclasses.replace(event, **{name: _shown(value) for name, value in vars(event).items()})


def _shown(value: object) -> object:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return tuple(map(_shown, value)) if isinstance(value, tuple) else value


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that ignores everything."""
