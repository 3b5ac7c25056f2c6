"""The versions of RWKV."""

from __future__ import annotations

from typing import Final

VERSIONS: Final = ("4", "5.0", "5.1", "5.2", "6", "7")
ALL_VERSIONS: Final = frozenset(VERSIONS)
STATEFUL: Final = ALL_VERSIONS - {"4"}  # those that have a state for each head
