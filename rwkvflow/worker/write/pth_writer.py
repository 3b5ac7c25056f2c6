"""Writes torch files (.pth) without torch, as a stream: a stored zip of a pickle and one record for each tensor.

The records are those of torch/serialization.py: `<folder>/data.pkl`, `byteorder`, `version`, `data/<index>`, each
stored and aligned to 64 bytes. The layout is PKWARE's APPNOTE 4.3; checksums are known when the data went by, so they
stand behind each record (bit 3) and in the directory at the end. Dates are fixed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.worker.model.tensorinfo import ITEM_BYTES
from rwkvflow.worker.write.file import FileWriter
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder

STORAGES: Mapping[str, str] = {
    "f64": "DoubleStorage",
    "f32": "FloatStorage",
    "f16": "HalfStorage",
    "bf16": "BFloat16Storage",
    "i64": "LongStorage",
    "i32": "IntStorage",
    "i16": "ShortStorage",
    "i8": "CharStorage",
    "u8": "ByteStorage",
    "bool": "BoolStorage",
}
ALIGNMENT = 64
DATE = 0x0021  # 1980-01-01, the first there is; the time is 0
LARGE = 0xFFFFFFFF
DATA_DESCRIPTOR, UTF8 = 1 << 3, 1 << 11


@dataclass(frozen=True)
class PthTensor:
    """A tensor of the file. `transposed`: a matrix whose values stand in the order of its columns."""

    name: str
    dtype: str  # a key of STORAGES
    shape: tuple[int, ...]
    source: str
    encoding: Encoding
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stride(self) -> tuple[int, ...]:
        """As PyTorch counts it, in values."""
        if self.transposed:
            return (1, self.shape[0])
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


@dataclass(frozen=True)
class WrittenRecord:
    """A file inside the zip: where its header and its data begin."""

    name: bytes
    header: int
    data: int
    size: int

    @property
    def is_large(self) -> bool:
        """Whether its entry in the zip file needs 64-bit sizes."""
        return self.size >= LARGE

    @property
    def descriptor(self) -> int:
        """Bytes behind the data."""
        return 24 if self.is_large else 16


@dataclass(frozen=True)
class PthLayout(Layout):
    """Literals that hold checksums are zeros of the right length; PthWriter knows better."""

    records: tuple[WrittenRecord, ...] = ()
    directory: int = 0


def pth_layout(
    tensors: Sequence[PthTensor], values: Mapping[str, str | int] | None = None, remarks: Iterable[str] = ()
) -> PthLayout:
    """A file of a dict of these tensors and then these values, in this order."""
    build, records = LayoutBuilder(), []

    def begin(name: str, size: int) -> None:
        raw = f"archive/{name}".encode()
        header = build.size
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= LARGE else b""
        pad = -(header + 30 + len(raw) + len(wide) + 4) % ALIGNMENT
        extra = wide + struct.pack("<2sH", b"FB", pad) + b"Z" * pad
        sizes = (LARGE, LARGE) if wide else (size, size)
        start = struct.pack(
            "<4s5H3I2H",
            b"PK\3\4",
            45 if wide else 20,
            DATA_DESCRIPTOR | UTF8,
            0,
            0,
            DATE,
            0,
            *sizes,
            len(raw),
            len(extra),
        )
        build.literal(start + raw + extra)
        records.append(WrittenRecord(raw, header, build.size, size))

    def end() -> None:
        build.literal(bytes(records[-1].descriptor))

    for name, data in (("data.pkl", _pickle(tensors, values or {})), ("byteorder", b"little"), ("version", b"3\n")):
        begin(name, len(data))
        build.literal(data)
        end()
    for index, tensor in enumerate(tensors):
        begin(f"data/{index}", tensor.nbytes)
        build.slot(tensor.source, math.prod(tensor.shape), tensor.encoding, size=tensor.nbytes)
        end()
    directory = build.size
    build.literal(bytes(len(_directory(records, [0] * len(records), directory))))
    for remark in remarks:
        build.remark(remark)
    plain = build.done()
    return PthLayout(plain.size, plain.literals, plain.slots, plain.remarks, tuple(records), directory)


class PthWriter(FileWriter):
    """Writes a PthLayout. The bytes pass in the order of the file when they are hashed, and are summed there."""

    def __init__(self, path: Path, layout: PthLayout) -> None:
        """Open the file; `layout` says where everything goes."""
        super().__init__(path, layout)
        self._records = layout.records
        self._directory = layout.directory
        self._sums: list[int] = []  # of the records that are complete
        self._sum = 0

    def _literal(self, offset: int, planned: bytes) -> bytes:
        if offset == self._directory:
            return _directory(self._records, self._sums, offset)
        done = len(self._sums)
        if done == len(self._records) or offset != self._records[done].data + self._records[done].size:
            return planned
        record = self._records[done]
        self._sums.append(self._sum)
        self._sum = 0
        sizes = struct.pack("<QQ" if record.is_large else "<II", record.size, record.size)
        return struct.pack("<4sI", b"PK\7\10", self._sums[-1]) + sizes

    def _take(self, data: memoryview | bytes) -> None:
        done = len(self._sums)
        if done < len(self._records):
            record = self._records[done]
            if record.data <= self._hashed < record.data + record.size:
                self._sum = zlib.crc32(data, self._sum)
        super()._take(data)


def _directory(records: Sequence[WrittenRecord], sums: Sequence[int], offset: int) -> bytes:
    """What ends the zip: an entry for each record, and the ends, which are 64 bits wide where they must."""
    out = bytearray()
    for record, crc in zip(records, sums, strict=True):
        wide = [record.size, record.size] if record.is_large else []
        wide += [record.header] if record.header >= LARGE else []
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = 45 if wide else 20
        out += struct.pack("<4s6H", b"PK\1\2", version, version, DATA_DESCRIPTOR | UTF8, 0, 0, DATE)
        out += struct.pack("<3I", crc, min(record.size, LARGE), min(record.size, LARGE))
        out += struct.pack("<5HII", len(record.name), len(extra), 0, 0, 0, 0, min(record.header, LARGE))
        out += record.name + extra
    size, count = len(out), len(records)
    if offset >= LARGE or size >= LARGE or count >= 0xFFFF:
        end = offset + size
        out += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        out += struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    short = min(count, 0xFFFF)
    out += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, short, short, min(size, LARGE), min(offset, LARGE), 0)
    return bytes(out)


def _pickle(tensors: Sequence[PthTensor], values: Mapping[str, str | int]) -> bytes:
    """Protocol 2, with the globals that torch.load(weights_only=True) takes."""
    out = bytearray(b"\x80\x02}(")
    for index, tensor in enumerate(tensors):
        out += _text(tensor.name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        out += b"(" + _text("storage") + b"ctorch\n" + STORAGES[tensor.dtype].encode() + b"\n" + _text(str(index))
        out += _text("cpu") + _integer(math.prod(tensor.shape)) + b"tQ" + _integer(0)
        for numbers in (tensor.shape, tensor.stride):
            out += b"(" + b"".join(map(_integer, numbers)) + b"t"
        out += b"\x89ccollections\nOrderedDict\n)RtR"
    for name, value in values.items():
        out += _text(name) + (_text(value) if isinstance(value, str) else _integer(value))
    return bytes(out + b"u.")


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw
