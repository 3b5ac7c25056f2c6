"""What is known of a finished step: its record, how it is written, and what it has to look like to be believed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.names import checked_part

TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)  # fixed width: earlier is less


@dataclass(frozen=True)
class Output:
    """One output of a step: digest "sha256:<hex>", "file" or "tree", size in bytes over all files."""

    digest: str
    kind: str
    size: int


@dataclass(frozen=True)
class RecordSignature:
    """Who signed a record, and when. Times are UTC, as 2026-11-30T12:00:00Z."""

    by: str  # public key, as text
    at: str  # as the signer says
    value: str  # base64
    kept: str = ""  # when the remote store says that the record was written; no part of what is signed


@dataclass(frozen=True)
class Record:
    """What the index holds for a step key."""

    step: str
    outputs: dict[str, Output]
    seconds: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)
    remote: str = field(default="", compare=False)  # id of the remote store that said so; "" for what was done here
    signature: RecordSignature | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Wanted:
    """What the record of a step has to look like. `kinds` gives None where an output may be a file or a tree.

    The same work has the same key under whatever name: an engine that two images share, a checkpoint that two recipes
    call differently. Of the step's name, the stage alone is therefore compared.
    """

    step: str
    kinds: Mapping[str, str | None]
    digests: Mapping[str, str] = field(default_factory=dict)  # of outputs that are known before

    def problem(self, record: Record) -> str | None:
        """Why a record is not this step's, in words."""
        if record.step.partition("/")[0] != self.step.partition("/")[0]:
            return f"it is of {record.step!a:.80}, not of {self.step}"
        if set(record.outputs) != set(self.kinds):
            return f"it has the outputs {sorted(record.outputs)!a:.80}, not {sorted(self.kinds)}"
        for name, output in record.outputs.items():
            if self.kinds[name] not in (None, output.kind):
                return f"its {name} is a {output.kind}, not a {self.kinds[name]}"
            if self.digests.get(name, output.digest) != output.digest:
                return f"its {name} is another than the one that is pinned"
        return None


def record_json(record: Record) -> dict[str, Any]:
    """A record as the index holds it."""
    entry = asdict(record)
    if not record.remote:
        del entry["remote"]
    if record.signature is None:
        del entry["signature"]
    return entry


def parse_record(entry: Any) -> Record:
    """A record from JSON, of this machine or another. Raises ValueError for whatever is odd about it."""
    try:
        outputs = {str(name): _output(value) for name, value in entry["outputs"].items()}
        notes = {str(name): str(value) for name, value in entry["notes"].items()}
        record = Record(
            str(entry["step"]),
            outputs,
            float(entry["seconds"]),
            notes,
            str(entry.get("remote", "")),
            _signature(entry.get("signature")),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RwkvflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not outputs:
        raise ValueError("it has no outputs")
    if not math.isfinite(record.seconds):
        raise ValueError("it took no number of seconds")
    for name in outputs:
        checked_part(name)
    return record


def _output(value: Mapping[str, Any]) -> Output:
    output = Output(str(value["digest"]), str(value["kind"]), value["size"])
    sized = isinstance(output.size, int) and not isinstance(output.size, bool) and 0 <= output.size < 1 << 63
    if output.kind not in ("file", "tree") or not sized:
        raise ValueError(f"not an output: {str(value)[:200]}")
    digest_hex(output.digest)
    return output


def _signature(value: Mapping[str, Any] | None) -> RecordSignature | None:
    if value is None:
        return None
    at, kept = str(value["at"]), str(value.get("kept", ""))
    if not TIMES.fullmatch(at) or not (kept == "" or TIMES.fullmatch(kept)):
        raise ValueError(f"its signature has no time: {at!a:.40}")
    return RecordSignature(str(value["by"]), at, str(value["value"]), kept)


def digest_hex(digest: str) -> str:
    """The hexadecimal part of a digest; raises RwkvflowError for anything else."""
    kind, _, name = digest.partition(":")
    if kind != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise RwkvflowError(f"not a sha256 digest: {ascii(digest)[:100]}")
    return name
