"""Listeners to events: a live display for terminals, plain lines for CI, JSON lines for programs."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from rwkvflow.base.events import Event


class Display(Protocol):
    """A listener that may have something to take down at the end."""

    def __call__(self, event: Event) -> None:
        """Take one event; called from several threads."""

    def close(self) -> None:
        """Called once, whatever happened."""


def display_for(*, as_json: bool, verbose: bool) -> Display:
    """JSON where asked for, live bars on a terminal outside CI, else plain lines."""
    if as_json:
        from rwkvflow.display.jsonl import JsonLines

        return JsonLines()
    if sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb":
        from rwkvflow.display.live import LiveDisplay

        return LiveDisplay(verbose=verbose)
    from rwkvflow.display.plain import PlainDisplay

    return PlainDisplay(verbose=verbose)
