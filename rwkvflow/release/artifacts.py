"""What of a run can be published: artifacts that were converted, passed their smoke, and are the same in all images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import PublishError
from rwkvflow.base.hashing import file_digest, text_digest, walk
from rwkvflow.release.names import ENGINE, quality_report, smoke_report, types_report


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release. `source` is a file, or the bytes themselves."""

    path: str  # POSIX, relative to the release
    digest: str
    size: int
    source: Path | bytes


@dataclass(frozen=True)
class Row:
    """One artifact as the card's table shows it. `path` is a folder's where the format is one, or the file was split.

    facts: what rwkvflow.worker.read.inspect.describe says of the file, without the list of tensors; empty where it does
    not know the format. smoke, quality, search: the reports of the smoke stage, of the quality stage and of the search
    for types; empty without one.
    """

    model: str
    format: str
    path: str
    digest: str
    size: int
    images: tuple[str, ...]
    smoke: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> float | None:
        """Bits per weight, as the smoke report has them; None where it does not."""
        bits = self.smoke.get("bits_per_weight")
        return float(bits) if isinstance(bits, int | float) else None

    @property
    def sha256(self) -> str:
        """Hex digest of the file."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Gathered:
    """Rows, their files with reports and extras, and why which artifacts are left out."""

    rows: tuple[Row, ...]
    files: tuple[ReleaseFile, ...]
    left_out: Mapping[str, str]


def gather(params: Mapping[str, Any], inputs: Mapping[str, Path], digests: Mapping[str, str]) -> Gathered:
    """Sort out the artifacts of a run. Raises PublishError when nothing at all may be published."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in params["entries"]:
        groups.setdefault(entry["file"], []).append(entry)
    rows: list[Row] = []
    files: dict[str, ReleaseFile] = {}
    left_out: dict[str, str] = {}
    for name, entries in groups.items():
        problems = {entry["id"]: _problem(entry, inputs) for entry in entries}
        made = {digests[f"artifact/{entry['id']}"] for entry in entries if f"artifact/{entry['id']}" in digests}
        if any(problems.values()):
            left_out.update({name: why or "left out with the others" for name, why in problems.items()})
            continue
        if len(made) > 1:
            why = "its images made different bytes, so it is not reproducible"
            left_out.update({entry["id"]: why for entry in entries})
            continue
        source = inputs[f"artifact/{entries[0]['id']}"]
        split = entries[0].get("folder") if source.is_dir() else None
        path = split or name
        own = {file.path: file for file in _files(path, source, made.pop())}
        beside = {file.path: file for file in _beside(path, entries, inputs)}
        files |= own | beside
        rows.append(_row(path, entries, own, inputs, digests, split=split is not None))
    for model in sorted({row.model for row in rows}):
        if (matrix := inputs.get(f"imatrix/{model}")) is not None:
            name = params["imatrices"][model]["file"]
            files[name] = from_file(name, matrix)
    for target in params.get("targets", ()):
        if (folder := inputs.get(f"target/{target}")) is None:
            left_out[f"{ENGINE}/{target}"] = "it was not built"
            continue
        # An empty file says that nothing was patched.
        files |= {file.path: file for file in _files(f"{ENGINE}/{target}", folder, "") if file.size}
    if not rows:
        reasons = "".join(f"\n  {name}: {why}" for name, why in sorted(left_out.items()))
        raise PublishError(f"nothing to publish: no artifact was made and passed its smoke{reasons}")
    return Gathered(tuple(rows), tuple(files.values()), left_out)


def _problem(entry: Mapping[str, Any], inputs: Mapping[str, Path]) -> str | None:
    if f"artifact/{entry['id']}" not in inputs:
        return "it was not converted"
    if f"smoke/{entry['id']}" not in inputs:
        return "it did not pass its smoke"
    if entry.get("measured") and f"quality/{entry['id']}" not in inputs:
        return "its quality was not measured, or is over the recipe's limits"
    return None


def _files(path: str, source: Path, digest: str) -> Iterator[ReleaseFile]:
    if not source.is_dir():
        yield from_file(path, source, digest)
        return
    for item in walk(source):
        yield from_file(f"{path}/{item.relative_to(source).as_posix()}", item)


def _beside(path: str, entries: list[Mapping[str, Any]], inputs: Mapping[str, Path]) -> Iterator[ReleaseFile]:
    model, name = entries[0]["model"], Path(path).name
    yield from_file(smoke_report(path), inputs[f"smoke/{entries[0]['id']}"])
    if measured := inputs.get(f"quality/{entries[0]['id']}"):
        yield from_file(quality_report(path), measured)
    if types := inputs.get(f"types/{entries[0]['id']}"):
        yield from_file(types_report(path), types)
    for entry in entries:
        for extra, key in sorted(entry["extra"].items()):
            if key in inputs:
                stage, output = extra.split("/")
                yield from _files(f"{model}/{stage}/{name}.{output}", inputs[key], "")


def _row(
    path: str,
    entries: list[Mapping[str, Any]],
    own: Mapping[str, ReleaseFile],
    inputs: Mapping[str, Path],
    digests: Mapping[str, str],
    *,
    split: bool,
) -> Row:
    first = entries[0]
    return Row(
        model=first["model"],
        format=first["format"],
        path=path,
        digest=digests[f"artifact/{first['id']}"],
        size=sum(file.size for file in own.values()),
        images=tuple(sorted(entry["image"] for entry in entries)),
        smoke=json.loads(inputs[f"smoke/{first['id']}"].read_text(encoding="utf-8")),
        facts=_facts(inputs[f"artifact/{first['id']}"], split),
        quality=_report(inputs.get(f"quality/{first['id']}")),
        search=_report(inputs.get(f"types/{first['id']}")),
        files=tuple(own),
    )


def _report(path: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return found


def _facts(path: Path, split: bool) -> dict[str, Any]:
    """What the artifact says of itself. Whatever a format of another kind holds is no reason not to publish it."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.inspect import describe

    if path.is_dir() and not split:
        return {}
    try:
        facts = describe(path)
    except (WorkerError, OSError):
        return {}
    return {key: facts[key] for key in ("format", "architecture", "parameters", "types")}


def from_file(path: str, source: Path, digest: str = "") -> ReleaseFile:
    """A file of a release that stands on this machine; hashed where its digest is not known."""
    return ReleaseFile(path, digest or file_digest(source), source.stat().st_size, source)


def from_bytes(path: str, data: bytes) -> ReleaseFile:
    """A file of a release that is made here."""
    return ReleaseFile(path, text_digest(data), len(data), data)
