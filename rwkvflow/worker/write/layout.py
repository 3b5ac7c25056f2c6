"""What a format is, and how one describes its file before a byte of it is written.

A format knows from names, shapes and types alone where every tensor goes: that is its Layout, a pure function. The
converter (rwkvflow.worker.write.convert) reads each tensor once, encodes each distinct Encoding of it once, and hands
the bytes to the Writer of every format that has a Slot for it. Nothing here imports numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rwkvflow.worker.model.architecture import is_state

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.read.checkpoint import TensorInfo

ALL_VERSIONS = frozenset({"4", "5.0", "5.1", "5.2", "6", "7"})

STATEFUL = ALL_VERSIONS - {"4"}  # those that have a state for each head

# Types of weights, with rwkv.cpp's numbers (engine/src/quantize/blocks.h), and their (values, bytes) of a block.
F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16 = 0, 1, 2, 3, 7, 8, 9, 30
Q4_K, Q5_K = 12, 13  # rwkv.cpp has none of these: ggml's numbers
BLOCKS: Mapping[int, tuple[int, int]] = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (32, 18),
    Q4_1: (32, 20),
    Q5_0: (32, 22),
    Q5_1: (32, 24),
    Q8_0: (32, 34),
    Q4_K: (256, 144),
    Q5_K: (256, 176),
}
QUANTIZED = frozenset({Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K})
NARROWER: Mapping[int, int] = {Q4_K: Q5_0, Q5_K: Q5_1}  # of 32 values: for rows that 256 do not divide, as in llama.cpp
TYPE_OF_DTYPE: Mapping[str, int] = {"f32": F32, "f16": F16, "bf16": BF16}  # dtypes that the engine encodes


def size_of(kind: int, count: int) -> int:
    """Bytes of `count` weights; count has to be a multiple of the type's block."""
    length, size = BLOCKS[kind]
    if count % length:
        raise ValueError(f"{count} weights are no whole blocks of type {kind}")
    return count // length * size


@dataclass(frozen=True)
class Limits:
    """What smoke lets a format lose against the fp32 reference, where the recipe does not say.

    logits: largest difference of a logit, relative to the standard deviation of the reference's logits.
    perplexity: largest rise of the perplexity as a ratio; 0.01 is one percent.
    """

    logits: float
    perplexity: float


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
class Encoding:
    """How values become bytes. Slots of equal encoding share the work.

    kind: a type of BLOCKS; None for the checkpoint's own bytes, or those that the transform gives. via_f16: rounded to
    F16 before they are quantized.
    """

    kind: int | None
    via_f16: bool = False
    transform: Transform | None = None

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
    """Of a file that holds nothing of a tensor."""
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
        """The same bytes, written by now, for digests: once each, ascending within a slot. Raises OSError."""

    def close(self) -> Written:
        """All slots are complete: write the rest and flush it to the disk. Raises OSError."""

    def abort(self) -> None:
        """Close and leave nothing behind. Never raises."""


@dataclass(frozen=True)
class Split:
    """How an artifact is split: `size` bytes that no file of it should have more of; `stem`, how its files begin."""

    size: int
    stem: str = "model"


@dataclass(frozen=True)
class Format(ABC):
    """One kind of artifact. Adding a format is adding a module here whose FORMATS holds its instances."""

    name: str
    suffix: str  # follows the model's name in the artifact's file name
    versions: frozenset[str]
    consumer: str  # what proves the artifact in the smoke stage
    limits: Limits
    # What the consumer needs in the image besides the worker: names of packages, whose versions images/pins.yaml gives
    # (role `consumers`), or requirements with a version of their own. Of PyTorch the recipe names the version.
    requires: tuple[str, ...] = field(default=(), kw_only=True)
    needs_torch: bool = field(default=False, kw_only=True)
    engine: str | None = field(default=None, kw_only=True)  # what else has to be built for the consumer: "llama.cpp"
    fixed_epsilon: bool = field(default=False, kw_only=True)  # whether what runs it knows one head_norm_eps only
    tokenizer: bool = field(default=False, kw_only=True)  # whether a tokenizer that the recipe names goes into it
    # Versions of which it has a place for initial states (blocks.N.att.time_state); of others they are left out.
    states: frozenset[str] = field(default=frozenset(), kw_only=True)
    splits: bool = field(default=False, kw_only=True)  # whether its runtime reads a model that is split over files
    split: Split | None = field(default=None, kw_only=True)  # what the recipe asks for; not of the registry's instances

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold such a model; None when it can."""
        if architecture.version in self.versions:
            return self._refuse_epsilon(architecture)
        return f"{self.name} cannot hold version {architecture.version}; it holds {', '.join(sorted(self.versions))}"

    def _refuse_epsilon(self, architecture: Architecture) -> str | None:
        from rwkvflow.worker.model.architecture import HEAD_NORM_EPS

        eps = architecture.head_norm_eps
        if not self.fixed_epsilon or architecture.version == "4" or eps == HEAD_NORM_EPS:
            return None
        return (
            f"{self.name} cannot hold a model whose head group norm has an epsilon of {eps:g}: "
            f"what runs it has {HEAD_NORM_EPS:g}"
        )

    def held(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """The tensors that an artifact is made of: without initial states where it has no place for them."""
        if architecture.version in self.states:
            return tensors
        return {name: info for name, info in tensors.items() if not is_state(name) or name in architecture.extra}

    def left_out(self, held: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo]) -> list[str]:
        """What to say of tensors that are not `held`."""
        count = len(tensors) - len(held)
        return [f"{self.name} has no place for initial states: those of {count} layers are left out"] if count else []

    @abstractmethod
    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """Bytes of the artifact, known before anything is read. Raises WorkerError where `open` would."""

    @abstractmethod
    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`. Raises WorkerError when these tensors cannot be written so, and OSError."""


@dataclass(frozen=True)
class FileFormat(Format):
    """A format of a single file, described by a Layout."""

    @abstractmethod
    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where everything goes; `tensors` in the checkpoint's order. Raises WorkerError."""

    def parts(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], split: Split
    ) -> Mapping[str, Layout] | None:
        """The files of the folder that this becomes where one file would be too large, by name; else None.

        Raises WorkerError. Only of formats with `splits`.
        """
        return None

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """See Format."""
        parts = self.parts(architecture, tensors, self.split) if self.split and self.splits else None
        if parts is not None:
            return sum(layout.size for layout in parts.values())
        return self.layout(architecture, tensors).size

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """See Format. The engine is not needed: layouts come from names and shapes."""
        from rwkvflow.worker.write.file import FileWriter

        if self.split and self.splits and (parts := self.parts(architecture, tensors, self.split)) is not None:
            from rwkvflow.worker.write.folder import FolderWriter

            return FolderWriter(path, parts)
        return FileWriter(path, self.layout(architecture, tensors))


@dataclass(frozen=True)
class FolderFormat(Format):
    """A format of a folder, each of its files described by a Layout."""

    @abstractmethod
    def layouts(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, Layout]:
        """Each file, as FileFormat's layout. Raises WorkerError."""

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """See Format."""
        return sum(layout.size for layout in self.layouts(architecture, tensors).values())

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """See Format. The engine is not needed: layouts come from names and shapes."""
        from rwkvflow.worker.write.folder import FolderWriter

        return FolderWriter(path, self.layouts(architecture, tensors))
