"""Whom a transfer talks to while it runs, and who may stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from rwkvflow.base.errors import Interrupted


@dataclass(frozen=True)
class Told:
    """Whom a publisher talks to, and who may stop it."""

    log: Callable[[str], None] = lambda line: None
    progress: Callable[[int, int], None] = lambda done, total: None  # bytes
    cancel: threading.Event | None = None

    def check(self) -> None:
        """Raise Interrupted once `cancel` is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise Interrupted("publishing was stopped", remedy="run again: what has arrived is not sent again")
