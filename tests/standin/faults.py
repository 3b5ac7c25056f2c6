"""Faults that requests run into, each a number of times."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cut", "status", "stall", "html", "no-range", "drop", "lost", "drip"]


@dataclass
class Fault:
    """cut: the connection ends after `after` bytes of the body; stall: nothing more comes after them;
    drip: then a byte a tick; status: an answer `status` with `headers`; html: a page with status 200;
    no-range: Range is ignored; drop: the connection ends before any answer; lost: it ends after the work was done.
    """

    kind: Kind
    path: re.Pattern[str]
    method: str | None = None
    times: int = 1
    after: int = 0
    status: int = 503
    seconds: float = 30.0
    headers: dict[str, str] = field(default_factory=dict)


class Faults:
    """Those that wait for their request."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request runs into; it is used up once."""
        with self._lock:
            for fault in self._waiting:
                if fault.times > 0 and fault.method in (None, method) and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None
