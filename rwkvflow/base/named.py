"""What is named as module:name and imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any


def named(text: str) -> Any:
    """The function or class that a text such as "rwkvflow.publish.hub:publisher" names."""
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)
