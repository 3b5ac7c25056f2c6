"""What a report tells: one run, from its events and from what the store still has of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rwkvflow.documents.names import repository_page
from rwkvflow.store.history import hide, read, secrets
from rwkvflow.store.store import Store

LOG_BYTES = 100_000  # of a step's log, from its end
PATCH_BYTES = 500_000


@dataclass
class StepRow:
    """One step. Times are seconds; `start` counts from the start of the run and is None for what did not run."""

    id: str
    stage: str = ""
    status: str = "running"
    seconds: float = 0.0
    start: float | None = None
    why: str = ""
    message: str = ""
    key: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""


@dataclass
class ArtifactRow:
    """One artifact of the matrix, with what its smoke measured."""

    id: str
    model: str
    format: str
    image: str
    status: str  # of its smoke, or of its conversion where that did not end well
    digest: str = ""
    size: int | None = None  # bytes
    smoke: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)  # by domain, where it was measured so
    message: str = ""
    links: list[tuple[str, str]] = field(default_factory=list)  # text, address


@dataclass
class RunData:
    """A run as a whole."""

    name: str
    recipe: str
    started: float  # seconds since 1970
    seconds: float
    status: str  # "done", "failed", "interrupted"
    sandbox: str = ""
    reason: str = ""
    steps: list[StepRow] = field(default_factory=list)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    patches: list[tuple[str, str]] = field(default_factory=list)  # engine step, unified diff
    published: list[tuple[str, str]] = field(default_factory=list)  # text, address
    notices: list[str] = field(default_factory=list)

    def count(self, *statuses: str) -> int:
        """How many steps ended so."""
        return sum(step.status in statuses for step in self.steps)


def gather(path: Path, store: Store, beside: Path) -> RunData:
    """Read a run's events and look up what they name. Links to files are relative to the folder `beside`."""
    entries = list(read(path))
    begun = next((entry for entry in entries if entry["event"] == "RunStarted"), {})
    ended = next((entry for entry in entries if entry["event"] == "RunFinished"), None)
    times = [entry["at"] for entry in entries if isinstance(entry.get("at"), int | float)]
    started = float(begun.get("at", times[0] if times else 0.0))
    steps = _steps(entries, started)
    failed = any(step.status == "failed" for step in steps.values())
    data = RunData(
        name=Path(str(begun.get("recipe", path.stem))).stem,
        recipe=str(begun.get("recipe", "")),
        started=started,
        seconds=float(ended["seconds"]) if ended else (max(times) - started if times else 0.0),
        status="failed" if failed else "done" if ended else "interrupted",
        sandbox=str(begun.get("sandbox", "")),
        reason=str(begun.get("reason", "")),
        steps=list(steps.values()),
        notices=[str(entry.get("message", "")) for entry in entries if entry["event"] == "Notice"],
    )
    hidden = secrets(os.environ)
    for step in data.steps:
        step.log = hide(_tail(store.log_path(step.key), LOG_BYTES), hidden) if _is_key(step.key) else ""
        step.message = hide(step.message, hidden)
    releases = _releases(data, store, beside)
    data.artifacts = list(_artifacts(steps, store, releases))
    data.patches = list(_patches(steps, store))
    return data


def _steps(entries: Iterable[Mapping[str, Any]], started: float) -> dict[str, StepRow]:
    steps: dict[str, StepRow] = {}
    for entry in entries:
        if entry["event"] == "StepStarted":
            row = steps.setdefault(str(entry["step"]), StepRow(str(entry["step"])))
            row.stage, row.why = str(entry.get("stage", "")), str(entry.get("why", ""))
            row.start = max(0.0, float(entry["at"]) - started)
        elif entry["event"] == "StepFinished":
            row = steps.setdefault(str(entry["step"]), StepRow(str(entry["step"])))
            row.stage, row.status = str(entry.get("stage", "")), str(entry.get("status", ""))
            row.seconds, row.message = float(entry.get("seconds", 0.0)), str(entry.get("message", ""))
            row.key = str(entry.get("key", ""))
            row.notes, row.outputs = dict(entry.get("notes", {})), dict(entry.get("outputs", {}))
    return steps


def _artifacts(
    steps: Mapping[str, StepRow], store: Store, releases: Mapping[str, list[tuple[str, str]]]
) -> Iterable[ArtifactRow]:
    for step in steps.values():
        if step.stage != "convert":
            continue
        name = step.id.removeprefix("convert/")
        model, _, rest = name.partition("/")
        format_name, _, image = rest.partition("@")
        smoke = steps.get(f"smoke/{name}")
        quality = steps.get(f"quality/{name}")
        last = smoke if smoke is not None and step.status in ("done", "cached") else step
        digest = step.outputs.get("artifact", "")
        record = store.lookup(step.key) if _is_key(step.key) else None
        output = record.outputs.get("artifact") if record else None
        yield ArtifactRow(
            id=name,
            model=model,
            format=format_name,
            image=image,
            status=last.status,
            digest=digest,
            size=output.size if output else None,
            smoke=_json(store, smoke.outputs.get("smoke", "")) if smoke else {},
            quality=_json(store, quality.outputs.get("quality", "")) if quality else {},
            message=last.message,
            links=releases.get(digest, []) if digest else [],
        )


def _releases(data: RunData, store: Store, beside: Path) -> dict[str, list[tuple[str, str]]]:
    """Digest of a file → where it was published."""
    found: dict[str, list[tuple[str, str]]] = {}
    for step in data.steps:
        if step.stage != "publish" or "to" not in step.notes:
            continue
        place = step.notes["to"]
        data.published.append((place, _address(place, "", beside)))
        files = _json(store, step.outputs.get("release", "")).get("files")
        for file, digest in sorted(files.items()) if isinstance(files, dict) else ():
            found.setdefault(str(digest), []).append((str(file), _address(place, str(file), beside)))
    return found


def _address(place: str, file: str, beside: Path) -> str:
    """Where a browser finds it; empty where it cannot."""
    if place.startswith("hf://"):
        owner, _, rest = place.removeprefix("hf://").partition("/")
        repository, _, revision = f"{owner}/{rest}".partition("@")
        address = repository_page(quote(repository))
        return address + (f"/blob/{quote(revision or 'main')}/{quote(file)}" if file else "")
    if place.startswith("https://"):
        return place + (f"/{quote(file)}" if file else "")
    if "://" in place:
        return ""
    return quote(os.path.relpath(Path(place) / file, beside)).replace("%3A", ":")


def _patches(steps: Mapping[str, StepRow], store: Store) -> Iterable[tuple[str, str]]:
    for step in steps.values():
        if step.stage == "engine" and (folder := _path(store, step.outputs.get("engine", ""))):
            text = _tail(folder / "patch.diff", PATCH_BYTES)
            yield step.id, text


def _json(store: Store, digest: str) -> dict[str, Any]:
    path = _path(store, digest)
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _path(store: Store, digest: str) -> Path | None:
    if not digest.startswith("sha256:") or not _is_key(digest.removeprefix("sha256:")):
        return None
    return store.path(digest)


def _is_key(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _tail(path: Path, most: int) -> str:
    """The end of a text file; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            text = file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
    return text if size <= most else f"… ({size - most} bytes left out)\n{text}"
