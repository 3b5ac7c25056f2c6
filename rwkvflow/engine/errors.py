"""The one kind of error of librwkv's binding."""

from __future__ import annotations


class EngineError(Exception):
    """The library refused something. `flags` are those of rwkv.h, 0 where it gave none."""

    def __init__(self, message: str, flags: int = 0) -> None:
        super().__init__(message)
        self.flags = flags
