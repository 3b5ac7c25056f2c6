"""What is sent to the workers of a cluster, and what they answer: JSON, and what of it is believed.

A message names the steps of one batch with their keys, the records of all that they need, and where the bytes are. Its
size does not depend on a model's. An answer is evidence: what is odd about it is refused, and the digests in it count
only where the store has such bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkvflow.base.errors import RwkvflowError, SmokeFailed, StepFailed, StoreError
from rwkvflow.base.text import shown
from rwkvflow.plan.step import canonical
from rwkvflow.store.record import Output, Record, digest_hex, parse_record, record_json

PROTOCOL = 1
ANSWER_CHARACTERS = 16 << 20
WORDS = 20_000  # of an error

#: The errors that a step may end with on a worker; others are a plain RwkvflowError here.
KINDS: Mapping[str, type[RwkvflowError]] = {kind.__name__: kind for kind in (StepFailed, SmokeFailed, StoreError)}


class AnswerError(Exception):
    """What a worker says is not what a worker of rwkvflow would say."""


@dataclass(frozen=True)
class Message:
    """The steps of one batch, for one worker. `store` is a folder that it shares with us, else `remote` is a URL."""

    token: str  # tells this task's events from others'
    topic: str  # where events are told
    bundle: Output  # the documents, as JSON
    steps: Mapping[str, str]  # id → key
    known: Mapping[str, tuple[str, Record]]  # id → key and record of all that they need
    remote: str | None = None
    store: str | None = None
    sandbox: str = "host"
    damaged: tuple[str, ...] = ()  # digests that stand in the remote store with other bytes: write them again

    def to_text(self) -> str:
        """As it is sent."""
        entry = {
            "protocol": PROTOCOL,
            "token": self.token,
            "topic": self.topic,
            "bundle": vars(self.bundle),
            "steps": dict(self.steps),
            "known": {name: {"key": key, **record_json(record)} for name, (key, record) in self.known.items()},
            "remote": self.remote,
            "store": self.store,
            "sandbox": self.sandbox,
            "damaged": list(self.damaged),
        }
        return canonical(entry).decode()


def parse_message(text: str) -> Message:
    """A message, on the worker. Raises AnswerError where it is of another protocol."""
    entry = _load(text)
    known = {name: (str(value["key"]), parse_record(value)) for name, value in entry["known"].items()}
    return Message(
        str(entry["token"]),
        str(entry["topic"]),
        output_of(entry["bundle"]),
        {str(name): str(key) for name, key in entry["steps"].items()},
        known,
        entry["remote"],
        entry["store"],
        str(entry["sandbox"]),
        tuple(str(digest) for digest in entry["damaged"]),
    )


@dataclass(frozen=True)
class Ended:
    """How one step ended on a worker, as it says."""

    status: str  # done | cached | failed | skipped | cancelled
    outputs: Mapping[str, Output] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: RwkvflowError | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        error = self.error
        told = error and {"kind": type(error).__name__, "message": error.message, "remedy": error.remedy}
        outputs = {name: dict(vars(output)) for name, output in self.outputs.items()}
        return {
            "status": self.status,
            "outputs": outputs,
            "notes": dict(self.notes),
            "seconds": self.seconds,
            "error": told,
        }


@dataclass(frozen=True)
class Answer:
    """What a worker says of a message. `refused` says why it carried nothing out, or why another one should.

    lost: digests of inputs whose bytes it could not get.
    """

    worker: str
    steps: Mapping[str, Ended] = field(default_factory=dict)
    refused: str = ""
    lost: tuple[str, ...] = ()

    def to_text(self) -> str:
        """As it is sent."""
        steps = {name: ended.to_json() for name, ended in self.steps.items()}
        entry = {"protocol": PROTOCOL, "worker": self.worker, "steps": steps, "refused": self.refused}
        return canonical({**entry, "lost": list(self.lost)}).decode()


def parse_answer(text: Any, wanted: Sequence[str]) -> Answer:
    """A worker's answer about these steps. Raises AnswerError for whatever is odd about it."""
    if not isinstance(text, str) or len(text) > ANSWER_CHARACTERS:
        raise AnswerError("it is no text, or too long")
    entry = _load(text)
    try:
        if refused := str(entry["refused"]):
            lost = tuple(f"sha256:{digest_hex(str(digest))}" for digest in entry["lost"])
            return Answer(str(entry["worker"])[:200], {}, refused[:WORDS], lost)
        if set(entry["steps"]) != set(wanted):
            raise AnswerError("it is about other steps")
        return Answer(str(entry["worker"])[:200], {name: _ended(name, entry["steps"][name]) for name in wanted})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RwkvflowError) as error:
        raise AnswerError(f"{type(error).__name__}: {error}") from error


def _ended(name: str, value: Mapping[str, Any]) -> Ended:
    status = value["status"]
    if status in ("done", "cached"):
        record = parse_record({"step": name, **{key: value[key] for key in ("outputs", "notes", "seconds")}})
        return Ended(status, record.outputs, record.notes, record.seconds)
    if status not in ("failed", "skipped", "cancelled"):
        raise ValueError(f"a step does not end as {status!a:.40}")
    seconds = float(value["seconds"])
    told = value["error"] or {"kind": "StepFailed", "message": "it did not say why", "remedy": None}
    kind = KINDS.get(str(told["kind"]), RwkvflowError)
    remedy = None if told["remedy"] is None else str(told["remedy"])[:WORDS]
    error = kind(str(told["message"])[:WORDS], remedy=remedy)
    return Ended(status, error=error, seconds=seconds if math.isfinite(seconds) else 0.0)


def output_of(value: Mapping[str, Any]) -> Output:
    """An output from JSON; raises what parse_record raises."""
    return parse_record({"step": "", "outputs": {"it": value}, "notes": {}, "seconds": 0}).outputs["it"]


def _load(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
        protocol = entry["protocol"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnswerError(f"it is none: {type(error).__name__}") from error
    if protocol != PROTOCOL:
        raise AnswerError(f"it is of protocol {protocol!a:.20}, and this is {PROTOCOL}: versions of rwkvflow differ")
    return dict(entry)


# ---- events ----------------------------------------------------------------------------------------------------

Told = Callable[[Mapping[str, Any]], None]


def parse_event(value: Any) -> dict[str, Any] | None:
    """What a worker tells while it works, fit to show; None for anything else."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return None
    kind, step = value["kind"], str(value.get("step", ""))
    if kind == "started":
        return {"kind": kind, "worker": shown(str(value.get("name", "")))[:200]}
    if kind == "log":
        lines = value.get("lines")
        return {"kind": kind, "step": step, "lines": [str(line) for line in lines]} if isinstance(lines, list) else None
    if kind == "progress":
        done, total = _number(value.get("done")), _number(value.get("total"))
        words = {name: str(value.get(name, ""))[:200] for name in ("unit", "label")}
        return None if done is None else {"kind": kind, "step": step, "done": done, "total": total, **words}
    return {"kind": kind} if kind == "ended" else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1e18 else None  # nan is neither; an integer may be larger than any float
