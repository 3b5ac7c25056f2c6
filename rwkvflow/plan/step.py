"""What a Step is, and its key.

A Step is a pure function from digests to digests. Its key is the sha256 of everything that can change its outputs:
the action, parameters, input digests and the code that runs. Time limits, retries and where the inputs happen to lie
on this machine are not part of it, so the same lock gives the same keys everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvflow.store.record import Wanted

Json = Any  # what json.dumps takes; never a float that is not exactly representable in the recipe


@dataclass(frozen=True)
class Ref:
    """An output of another step of the same plan."""

    step: str
    output: str


@dataclass(frozen=True)
class LocalInput:
    """A file or folder on this machine whose digest is known before the run (worker code, engine sources)."""

    digest: str  # "sha256:<hex>"; of a folder: see hashing.tree_digest
    path: Path
    made_of: tuple[LocalInput, ...] = ()  # where the digest is not that of the path, but made of theirs


Input = Ref | LocalInput


@dataclass(frozen=True)
class StepLimits:
    """What a step may use. None: no limit. Not part of the key."""

    time_s: float | None = None
    memory: int | None = None  # bytes
    cores: float | None = None
    retries: int = 0
    pids: int = 512
    disk: int | None = None  # bytes that its outputs and scratch may occupy at a time
    beside: bool = False  # it waits for the disk more than it computes: one such step runs beside those that compute


@dataclass(frozen=True)
class Step:
    """One node of the plan.

    `action` names who carries it out: "sandbox" runs `command` in the sandbox environment given by `environment`
    (the id of the step that made it); anything else is a function on the host, registered by pipeline.
    Steps with equal `batch` that are ready together are carried out in one command (one read, many formats).
    A `tolerant` step runs when all steps it refers to have *ended*, and sees only the inputs that exist.
    """

    id: str
    stage: str
    action: str
    params: Mapping[str, Json]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    code: str = ""  # digest of the code that runs, where that is not already an input
    environment: str | None = None
    consumers: str | None = None  # the same for the commands of a smoke that run artifacts, where they have their own
    command: tuple[str, ...] = ()
    limits: StepLimits = field(default_factory=StepLimits)
    batch: str | None = None
    tolerant: bool = False
    after: tuple[str, ...] = ()  # must have ended well before this starts, although none of its outputs is read
    local: Mapping[str, Json] = field(default_factory=dict)  # for the action only, never part of the key

    @property
    def environments(self) -> tuple[str, ...]:
        """The steps that made what its commands run in."""
        return tuple(name for name in (self.environment, self.consumers) if name)

    def parts(self, digests: Mapping[str, str]) -> dict[str, Json]:
        """Everything the key is made of. `digests` maps each input name to "sha256:<hex>"."""
        return {
            "action": self.action,
            "stage": self.stage,
            "command": list(self.command),
            "params": dict(self.params),
            "inputs": {name: digests[name] for name in sorted(digests)},
            "outputs": list(self.outputs),
            "code": self.code,
        }


#: What an output of a built-in stage is, by its name; an artifact is a folder for some formats.
_KINDS = {
    **dict.fromkeys(
        ("file", "environment", "smoke", "reference", "release", "imatrix", "quality", "losses", "types"), "file"
    ),
    **dict.fromkeys(("folder", "wheels", "engine"), "tree"),
}


def expected(step: Step) -> Wanted:
    """What a record has to look like to be this step's; a fetched file's digest is known beforehand."""
    kinds = {name: None if step.stage == "extra" else _KINDS.get(name) for name in step.outputs}
    pinned = {"file": f"sha256:{step.params['sha256']}"} if step.action == "fetch" and "sha256" in step.params else {}
    return Wanted(step.id, kinds, pinned)


def canonical(value: Json) -> bytes:
    """The one JSON encoding used for digests: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def key_of(parts: Mapping[str, Json]) -> str:
    """Step key: hex sha256 over the canonical parts."""
    return hashlib.sha256(canonical(parts)).hexdigest()
