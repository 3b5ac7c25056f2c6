"""How a file is described before a byte of it is written.

A format knows from names, shapes and types alone where every tensor goes: that is its Layout, a pure function. The
converter (rwkvflow.worker.conversion) reads each tensor once, encodes each distinct Encoding of it once, and hands the
bytes to the Writer of every format that has a Slot for it. Nothing here imports numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rwkvflow.worker.model.weight_types import size_of


@dataclass(frozen=True)
class Transform:
    """A change of a whole tensor before it is encoded; only for tensors that are small, or else `elementwise`.

    `function` gets and returns an array: float32 where `arithmetic` is set, else the checkpoint's own type (bf16 as
    uint16), whose values it may only move. Transforms are equal by name: results are shared between formats.
    `needs` names small tensors of the checkpoint, which follow the values as float32 arrays.
    """

    name: str
    function: Callable[..., Any] = field(compare=False)
    arithmetic: bool = False
    elementwise: bool = False  # each value, or each row, by itself: a tensor need not be in memory as a whole
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Importance:
    """How much an error of each column counts: `weights`, float32 [columns]. Equal by `key`, which stands for them."""

    key: str
    weights: Any = field(compare=False)


@dataclass(frozen=True)
class Encoding:
    """How values become bytes. Slots of equal encoding share the work.

    kind: a type of BLOCKS; None for the checkpoint's own bytes, or those that the transform gives. via_f16: rounded to
    F16 before they are quantized. importance: of the columns of what is quantized.
    """

    kind: int | None
    via_f16: bool = False
    transform: Transform | None = None
    importance: Importance | None = None

    @property
    def whole(self) -> bool:
        """Whether the tensor has to be read at once."""
        return self.transform is not None and not self.transform.elementwise


@dataclass(frozen=True)
class Slot:
    """Where in the file one source tensor goes: `size` bytes from `offset`."""

    offset: int
    size: int
    encoding: Encoding


@dataclass(frozen=True)
class Layout:
    """A file before it is written. Literals and slots cover [0, size) without gaps or overlaps.

    `remarks` are sentences for the log: what is written otherwise than the user may expect.
    """

    size: int
    literals: tuple[tuple[int, bytes], ...]  # (offset, bytes), ascending
    slots: Mapping[str, tuple[Slot, ...]]  # by name of the source tensor
    remarks: tuple[str, ...] = ()


class LayoutBuilder:
    """Puts pieces one after another."""

    def __init__(self) -> None:
        self.size = 0
        self._literals: list[tuple[int, bytes]] = []
        self._slots: dict[str, list[Slot]] = {}
        self._remarks: list[str] = []

    def literal(self, data: bytes) -> None:
        """Bytes that do not come from a tensor."""
        if data:
            self._literals.append((self.size, data))
            self.size += len(data)

    def slot(self, source: str, count: int, encoding: Encoding, size: int | None = None) -> None:
        """`count` values of the tensor `source`; `size` in bytes only where the encoding has no kind."""
        if size is None:
            if encoding.kind is None:
                raise ValueError(f"{source}: the size of raw values has to be given")
            size = size_of(encoding.kind, count)
        if size:
            self._slots.setdefault(source, []).append(Slot(self.size, size, encoding))
            self.size += size

    def remark(self, text: str) -> None:
        """A sentence for the log."""
        self._remarks.append(text)

    def done(self) -> Layout:
        """The layout so far."""
        slots = {name: tuple(slots) for name, slots in self._slots.items()}
        return Layout(self.size, tuple(self._literals), slots, tuple(self._remarks))


def literal_layout(data: bytes) -> Layout:
    """The layout of a file that holds no tensor."""
    build = LayoutBuilder()
    build.literal(data)
    return build.done()


@dataclass(frozen=True)
class Written:
    """A finished artifact. sha256 is None for a folder, which whoever keeps it hashes as a whole."""

    size: int
    sha256: str | None


class Writer(Protocol):
    """Takes the tensors of one artifact. `write` may be called by any thread, the rest by one thread at a time."""

    slots: Mapping[str, tuple[Slot, ...]]
    size: int
    remarks: tuple[str, ...]

    def write(self, slot: Slot, start: int, data: memoryview) -> None:
        """Put bytes [start, start + len(data)) of a slot in their place, in any order. Raises OSError."""

    def put(self, slot: Slot, start: int, data: memoryview) -> None:
        """Take bytes that have been written, for digests: each once, ascending within a slot. Raises OSError."""

    def close(self) -> Written:
        """All slots are complete: write the rest and flush it to the disk. Raises OSError."""

    def abort(self) -> None:
        """Close and leave nothing behind. Never raises."""
