"""How the host talks to the worker: a JSON request in, marked lines and files out.

Request (in/request.json): {"task": name, "params": {...}, "jobs": [{"id": ..., "params": {...}, "outputs": {...}}]}
Paths in it are relative to the working directory. Lines on standard output that start with MARK carry JSON:

    {"progress": {"done": 12, "total": 100, "unit": "B", "label": "blocks.0.att.key.weight"}}
    {"output": {"job": id, "name": "artifact", "sha256": hex, "size": bytes}}   an output that is complete
    {"note": {"job": id, "key": "perplexity", "value": "12.3"}}                 figures a person would like to see
    {"failed": {"job": id, "message": "..."}}                                   this job, and only this one, failed

Every other line is log.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "::rwkvflow "


def emit(**message: Any) -> None:
    """Print one marked line."""
    sys.stdout.write(MARK + json.dumps(message, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def progress(done: float, total: float | None, unit: str = "", label: str = "") -> None:
    """Report how far a long piece of work has come."""
    emit(progress={"done": done, "total": total, "unit": unit, "label": label})


def parse(line: str) -> dict[str, Any] | None:
    """The message in a marked line, or None for a log line (a damaged marked line is log as well)."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
