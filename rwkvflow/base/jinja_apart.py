"""Jinja of a stranger's - a card's template, a model's - rendered apart: sandboxed, in bounded time and memory.

Jinja's own sandbox keeps a template from Python's insides, and bounds neither loops in loops nor texts that double. So
it is rendered in a process of its own, which knows nothing of the environment and has limits that the kernel enforces.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 1 << 30  # bytes above what the process takes by itself


class TemplateError(ValueError):
    """A mistake in a template, with its line, or one that goes beyond its bounds; words to follow its name."""


@dataclass(frozen=True)
class Bounds:
    """seconds: of the processor, and six times as much by the clock; characters: of the text."""

    seconds: int = 10
    characters: int = 4 << 20


def render_apart(template: str, told: Mapping[str, Any], maker: str, bounds: Bounds) -> str:
    """The text. `maker` names what makes the sandboxed environment: "module:function". Raises TemplateError."""
    package = Path(__file__).resolve().parents[2]
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    paths = os.pathsep.join([str(package), *(path for path in sys.path if path)])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "rwkvflow.base.jinja_process"],
            input=pickle.dumps((maker, template, dict(told), bounds.seconds, MEMORY, bounds.characters)),
            env={**kept, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            capture_output=True,
            timeout=6 * bounds.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f" took more than {6 * bounds.seconds} s") from None
    answer = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return answer
    if done.returncode == 3:
        raise TemplateError(answer[:2000])
    raise TemplateError(
        f" took more than {bounds.seconds} s or {MEMORY >> 30} GiB (its process ended with {done.returncode})"
    )
