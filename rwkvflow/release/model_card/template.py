"""Jinja of a stranger's - a card's template, a checkpoint's - rendered apart: sandboxed, in bounded time and memory.

Jinja's own sandbox keeps a template from Python's insides, and bounds neither loops in loops nor texts that double. So
it is rendered in a process of its own, which knows nothing of the environment and has limits that the kernel enforces.
The shipped template, which is trusted, is rendered in this one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import PublishError

SECONDS = 10  # of the processor, and six times as much by the clock
MEMORY = 1 << 30  # bytes above what the process takes by itself
LARGEST = 4 << 20  # characters of a text
REMEDY = "it sees what the shipped template sees: rwkvflow/release/model_card/templates/README.md.j2"


def render_apart(template: str, told: Mapping[str, Any]) -> str:
    """The text. Raises PublishError, with the line, for a mistake in the template, or where it goes beyond bounds."""
    package = Path(__file__).resolve().parents[3]
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    paths = os.pathsep.join([str(package), *(path for path in sys.path if path)])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "rwkvflow.release.model_card.template_process"],
            input=pickle.dumps((template, dict(told), SECONDS, MEMORY, LARGEST)),
            env={**kept, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            capture_output=True,
            timeout=6 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PublishError(f"the card's template took more than {6 * SECONDS} s", remedy=REMEDY) from None
    answer = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return answer
    if done.returncode == 3:
        raise PublishError(f"the card's template{answer[:2000]}", remedy=REMEDY)
    raise PublishError(
        f"the card's template took more than {SECONDS} s or {MEMORY >> 30} GiB (its process ended with "
        f"{done.returncode})",
        remedy=REMEDY,
    )
