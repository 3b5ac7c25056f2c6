"""How events read, whatever displays them."""

from __future__ import annotations

from collections.abc import Mapping

from rwkvflow.base.events import RunFinished, RunStarted
from rwkvflow.base.text import shown


def duration(seconds: float) -> str:
    """0.41 → "0.4 s", 75 → "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def figures(notes: Mapping[str, str]) -> str:
    """Notes of a step on one line."""
    text = ", ".join(_figure(key, one_line(value)) for key, value in notes.items() if key != "to")
    where = f"  → {notes['to']}" if "to" in notes else ""
    return (f"  {text}" if text else "") + where


def _figure(key: str, value: str) -> str:
    if key == "files":
        return f"{value} files"
    if key == "continuation":
        return f"“{value}”"
    return f"{'rise' if key == 'perplexity rise' else key} {value}"


def one_line(text: str, width: int = 60) -> str:
    """Text on one line, cut to a width."""
    flat = shown(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def headline(event: RunStarted) -> str:
    """What runs, and where."""
    return f"{event.recipe}: {event.steps} steps in the {event.sandbox} sandbox ({event.reason})"


def summary(event: RunFinished) -> str:
    """What was done, in one line."""
    parts = [f"{event.done} done", f"{event.cached} cached"]
    parts += [f"{event.failed} failed"] if event.failed else []
    parts += [f"{event.skipped} skipped"] if event.skipped else []
    text = f"{', '.join(parts)} in {duration(event.seconds)}"
    return text + "".join(f"\npublished to {place}" for place in event.published)
