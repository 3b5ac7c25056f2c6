"""How the description of a model file reads in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rwkvflow.base.text import bytes_text, shown_line
from rwkvflow.worker.model.variants import label_of
from rwkvflow.worker.model.versions import HYBRIDS

SHOWN = 24  # names of metadata that are shown without --tensors


def describe_lines(description: Mapping[str, Any], *, tensors: bool) -> Iterator[str]:
    """Lines for what rwkvflow.worker.read.inspect.describe found, made fit to show: a file may hold any text."""
    return map(shown_line, _lines(description, tensors))


def _lines(description: Mapping[str, Any], tensors: bool) -> Iterator[str]:
    size, count = description["bytes"], description["parameters"]
    parts = f" in {len(files)} files" if (files := description.get("files")) else ""
    yield f"{description['file']}: {description['format']}, {bytes_text(size)}{parts}, {_count(count)} parameters"
    architecture = description["architecture"]
    if architecture:
        known = {key: value for key, value in architecture.items() if value not in (None, [], {})}
        version = str(known.pop("version", "?"))
        yield f"  {label_of(version)} ({version})" if version in HYBRIDS else f"  RWKV version {version}"
        extra = known.pop("extra", [])
        for key, value in known.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            yield f"  {key:<16} {text}"
        if extra:
            yield f"  unknown tensors  {', '.join(map(str, extra[:8]))}{' …' if len(extra) > 8 else ''}"
    if description["problem"]:
        yield f"  no RWKV architecture: {description['problem']}"
    for name, entry in description["types"].items():
        values = f"{_count(entry['parameters'])} values, {bytes_text(entry['bytes'])}"
        yield f"  {name:<16} {entry['tensors']} tensors, {values}"
    for index, (key, value) in enumerate(description["metadata"].items()):
        if index == SHOWN and not tensors:
            yield f"  … and {len(description['metadata']) - SHOWN} more; --json shows all"
            break
        yield f"  {key}: {' '.join(str(value).split())[:100]}"
    if tensors:
        width = max((len(tensor["name"]) for tensor in description["tensors"]), default=0)
        for tensor in description["tensors"]:
            shape = " × ".join(map(str, tensor["shape"])) or "scalar"
            yield f"  {tensor['name']:<{width}}  {tensor['dtype']:<5} {shape:<18} {bytes_text(tensor['bytes'])}"
    else:
        yield f"  {len(description['tensors'])} tensors; --tensors lists them"


def _count(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f}{unit}"
    return str(count)
