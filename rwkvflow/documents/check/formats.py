"""What the entries of a recipe's `formats`, and its `split`, must fulfil beyond types."""

from __future__ import annotations

from pathlib import Path

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.documents.formats import broken, format_names, is_format, splitting, strategy_format
from rwkvflow.documents.lock import lock_path
from rwkvflow.documents.yaml.nearest import did_you_mean, one_of, shown
from rwkvflow.documents.yaml.source import DocumentSource, Path_, parse
from rwkvflow.documents.yaml.units import split_bytes

FAMILY = "chatrwkv"  # the one format that is a family: its strategy makes the format


def listed_formats(source: DocumentSource) -> list[tuple[Path_, str]]:
    """Where each format of `formats` stands, and its name; wrong ones as they are written. Adds findings."""
    found: list[tuple[Path_, str]] = []
    for path, item in source.each("formats.*"):
        if isinstance(item, str):
            if not is_format(item):
                source.add(path, unknown_format(item, source.file))
            _mix(source, path, {}, item)
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
                source.add(place, unknown_format(name, source.file))
            found.append((place, name))
            if isinstance(item.get("split"), str) and item["split"] != "none" and is_format(name):
                _can_split(source, (*path, "split"), name)
            _mix(source, path, item, name)
    for pattern in ("split", "formats.*.split"):
        for path, text in source.texts(pattern):
            try:
                _ = text == "none" or split_bytes(text)
            except ValueError as error:
                source.add(path, str(error))
    return found


def _in_lock(name: str, file: str) -> tuple[str, str] | None:
    """Name and version of the package that the lock beside a recipe has for a format."""
    path = lock_path(Path(file))
    try:
        listed = parse(path.read_text(encoding="utf-8"), str(path)).to_python()["formats"]
        return next((package, str(item["version"])) for package, item in listed.items() if name in item["names"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RwkvflowError):
        return None  # there is no lock, or none that says so


def _mix(source: DocumentSource, path: Path_, item: dict[str, object], name: str) -> None:
    """Types of single tensors: of formats that take them, expressions and types that are some."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.mix import problem

    for key in ("tensor_types", "output_type", "embedding_type"):
        value = item.get(key)
        if value is None:
            continue
        if is_format(name) and not FORMATS[name].mixes:
            source.add((*path, key), f"only quantized gguf-* formats take {key}; {shown(name)} has none", at_key=True)
        given = list(value.items()) if isinstance(value, dict) else [("", value)]
        for rule, kind in given:
            if isinstance(rule, str) and isinstance(kind, str) and (why := problem(rule, kind)):
                source.add((*path, key, rule) if isinstance(value, dict) else (*path, key), why)
    is_mixed = is_format(name) and FORMATS[name].mixed
    if is_mixed and not item.get("tensor_types") and not item.get("target"):
        place = (*path, "format") if item else path
        source.add(place, f"{shown(name)} wants tensor_types or a target: without them it is the plain format")
    if isinstance(target := item.get("target"), dict):
        _target(source, (*path, "target"), target, name, is_mixed)


def _target(source: DocumentSource, path: Path_, target: dict[str, object], name: str, is_mixed: bool) -> None:
    from rwkvflow.worker.formats.mix import SEARCHED

    if is_format(name) and not is_mixed:
        source.add(path, f"only gguf-*-mixed formats take a target; {shown(name)} has types of its own", at_key=True)
    named = [key for key in ("bits_per_weight", "size", "kl") if target.get(key) is not None]
    if len(named) != 1:
        source.add(path, "a target is one of bits_per_weight, size and kl", at_key=True)
    listed = target.get("types")
    for index, kind in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(kind, str) and kind not in SEARCHED:
            source.add((*path, "types", index), f"{shown(kind)} is none of {one_of(SEARCHED)}")


def _can_split(source: DocumentSource, path: Path_, name: str) -> None:
    able = splitting()
    if name not in able:
        source.add(path, f"{name} cannot be split: nothing reads it in parts; these can be: {one_of(able)}")


def unknown_format(name: str, file: str | None = None) -> str:
    """What to say of a name that is no format's; `file` is the document, whose lock may tell where it comes from."""
    known = format_names()
    if file and (found := _in_lock(name, file)):
        package, version = found
        return (
            f"{shown(name)} is a format of the package {package}, which is not installed here; "
            f"the lock has {package} {version}"
        )
    if name == FAMILY:
        ready = [item for item in known if item.startswith(f"{FAMILY}-")]
        return (
            f'{FAMILY} needs a strategy, as in {{format: {FAMILY}, strategy: "cuda fp16 *10 -> cpu fp32"}}; '
            f"without one there are {one_of(ready)}"
        )
    within = [item for item in known if name and name.lower() in item and not item.endswith("-from-f32")]
    near = f"; did you mean {' or '.join(within)}?" if 0 < len(within) <= 3 else did_you_mean(name, known)
    more = "".join(f"; {package}, which adds formats, cannot be loaded: {why}" for package, why in broken().items())
    return f"unknown format {shown(name)}{near or '; known are ' + one_of(known)}{more}"
