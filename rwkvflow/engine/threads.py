"""How many threads a model is given where nobody says."""

from __future__ import annotations

import contextlib
import ctypes
import os

from rwkvflow.engine.binding import Library


def default_threads(library: Library) -> int:
    """One for each performance core that this process may use, as librwkv tells; else one a processor."""
    with contextlib.suppress(AttributeError):  # not ours, or an older one
        return int(library.function("rwkvflow_default_threads", ctypes.c_uint32)())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, 256))
