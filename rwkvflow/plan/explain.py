"""What changed between two runs of a step: a comparison of what its key is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rwkvflow.plan.step import Json


@dataclass(frozen=True)
class KeyChange:
    """One difference; `before` or `after` is None where the thing did not exist."""

    what: str  # such as "input checkpoint", "params.job.format", "code"
    before: Json
    after: Json

    def __str__(self) -> str:
        return f"{self.what}: {_short(self.before)} → {_short(self.after)}"


def differences(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[KeyChange]:
    """All differences between the parts of two keys, inputs first."""
    changes = list(_walk("", before, after))
    return sorted(changes, key=lambda change: (not change.what.startswith("input "), change.what))


def _walk(path: str, before: Json, after: Json) -> Iterator[KeyChange]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            yield from _walk(f"{path}.{name}" if path else str(name), before.get(name), after.get(name))
        return
    yield KeyChange("input " + path.removeprefix("inputs.") if path.startswith("inputs.") else path, before, after)


def _short(value: Json) -> str:
    if value is None:
        return "(absent)"
    text = value if isinstance(value, str) else repr(value)
    text = text.removeprefix("sha256:")[:12] + "…" if text.startswith("sha256:") else text
    return text if len(text) <= 80 else text[:77] + "…"
