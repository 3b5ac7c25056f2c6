"""A file of which chance changed some bytes: what a reader must refuse by name, or read."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st


def flipped(path: Path, data: st.DataObject, name: str = "flipped") -> Path:
    """A copy beside it with one to three other bytes, as `data` draws them."""
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    copy = path.with_name(name)
    copy.write_bytes(raw)
    return copy
