"""What the entries of a recipe's `formats`, and its `split`, must fulfil beyond types."""

from __future__ import annotations

from rwkvflow.documents.formats import format_names, is_format, splitting, strategy_format
from rwkvflow.documents.yaml.nearest import did_you_mean, one_of, shown
from rwkvflow.documents.yaml.source import Path_, Source
from rwkvflow.documents.yaml.units import split_bytes

FAMILY = "chatrwkv"  # the one format that is a family: its strategy makes the format


def listed_formats(source: Source) -> list[tuple[Path_, str]]:
    """Where each format of `formats` stands, and its name; wrong ones as they are written. Adds findings."""
    found: list[tuple[Path_, str]] = []
    for path, item in source.each("formats.*"):
        if isinstance(item, str):
            if not is_format(item):
                source.add(path, unknown_format(item))
            found.append((path, item))
        elif isinstance(item, dict) and isinstance(name := item.get("format"), str) and name:
            strategy = item.get("strategy")
            place: Path_ = (*path, "format")
            if strategy is not None and name != FAMILY:
                source.add((*path, "strategy"), f"only {FAMILY} takes a strategy; {shown(name)} has none", at_key=True)
            elif isinstance(strategy, str):
                try:
                    name, place = strategy_format(strategy), (*path, "strategy")
                except ValueError as error:
                    source.add((*path, "strategy"), f"not a strategy of the rwkv package: {error}")
            elif not is_format(name):
                source.add(place, unknown_format(name))
            found.append((place, name))
            if isinstance(item.get("split"), str) and item["split"] != "none" and is_format(name):
                _can_split(source, (*path, "split"), name)
    for pattern in ("split", "formats.*.split"):
        for path, text in source.texts(pattern):
            try:
                _ = text == "none" or split_bytes(text)
            except ValueError as error:
                source.add(path, str(error))
    return found


def _can_split(source: Source, path: Path_, name: str) -> None:
    able = splitting()
    if name not in able:
        source.add(path, f"{name} cannot be split: nothing reads it in parts; these can be: {one_of(able)}")


def unknown_format(name: str) -> str:
    """What to say of a name that is no format's."""
    known = format_names()
    if name == FAMILY:
        ready = [item for item in known if item.startswith(f"{FAMILY}-")]
        return (
            f'{FAMILY} needs a strategy, as in {{format: {FAMILY}, strategy: "cuda fp16 *10 -> cpu fp32"}}; '
            f"without one there are {one_of(ready)}"
        )
    within = [item for item in known if name and name.lower() in item and not item.endswith("-from-f32")]
    near = f"; did you mean {' or '.join(within)}?" if 0 < len(within) <= 3 else did_you_mean(name, known)
    return f"unknown format {shown(name)}{near or '; known are ' + one_of(known)}"
