"""The directory of a stored zip file, validated before any of it is believed.

Layout: PKWARE's APPNOTE 4.3 (end of central directory, its 64-bit form, central and local headers). Python's zipfile
is not used: it reads a directory of any size into memory and lets records overlap.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.rawfile import RawFile

MAX_DIRECTORY: Final = 64 << 20
_CUT = "Download or copy the file again."


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """One file inside: where its bytes are, how many, and what their CRC-32 should be."""

    name: str
    header: int
    offset: int
    size: int
    crc: int
    stored: bool


def read_directory(file: RawFile) -> dict[str, ZipRecord]:
    """Every record by its name.

    Raises WorkerError for a file that is cut short, damaged, encrypted or split, and for records that overlap, repeat
    a name or lie outside the file. A record that is compressed is listed with stored=False.
    """
    start, count, limit = _end(file)
    raw = file.bytes_at(start, limit - start)
    records: list[ZipRecord] = []
    at = 0
    while at < len(raw):
        record, at = _central(file, raw, at, start)
        records.append(record)
    if len(records) != count:
        raise _bad(file, f"its directory lists {len(records)} records and claims {count}")
    out: dict[str, ZipRecord] = {}
    for record in records:
        if record.name in out:
            raise _bad(file, f"two records are called {record.name[:100]!a}")
        out[record.name] = record
    end = 0
    for record in sorted(records, key=lambda item: item.header):
        if record.header < end:
            raise _bad(file, f"record {record.name[:100]!a} overlaps the one before it")
        end = record.offset + record.size
    return out


def has_checksums(records: Mapping[str, ZipRecord]) -> bool:
    """Whether they were computed: torch.save may be told not to (set_crc32_options), and then all are 0."""
    return any(record.crc for record in records.values() if record.size)


def check(file: RawFile, record: ZipRecord, on_bytes: Callable[[int], None] | None = None) -> None:
    """Reads a record once, a MiB at a time, and compares its CRC-32. Raises WorkerError where it differs."""
    crc, done = 0, 0
    while done < record.size:
        piece = file.bytes_at(record.offset + done, min(1 << 20, record.size - done))
        crc, done = zlib.crc32(piece, crc), done + len(piece)
        if on_bytes:
            on_bytes(len(piece))
    if crc != record.crc:
        raise _bad(file, f"the bytes of record {record.name!a} do not match their checksum")


def _bad(file: RawFile, what: str) -> WorkerError:
    return WorkerError(f"{file.name}: damaged zip file: {what}. {_CUT}")


def _end(file: RawFile) -> tuple[int, int, int]:
    """Start of the directory, number of records, end of the directory."""
    tail_at = max(0, file.size - 22 - 65535)
    tail = file.bytes_at(tail_at, file.size - tail_at)
    at = len(tail) - 22
    while at >= 0:
        at = tail.rfind(b"PK\5\6", 0, at + 4)
        if at >= 0 and at + 22 + struct.unpack_from("<H", tail, at + 20)[0] == len(tail):
            break
        at -= 1
    if at < 0:
        raise WorkerError(
            f"{file.name}: the file is cut short or damaged: the directory that ends every zip file is missing. {_CUT}"
        )
    disk, first, here, count, size, start = struct.unpack_from("<HHHHII", tail, at + 4)
    limit = tail_at + at
    if limit >= 20:
        mark, _, at64, disks = struct.unpack("<IIQI", file.bytes_at(limit - 20, 20))
        if mark == 0x07064B50:
            if at64 > limit - 76 or disks > 1:
                raise _bad(file, "its 64-bit directory lies outside the file")
            mark, length, _, _, disk, first, here, count, size, start = struct.unpack(
                "<IQHHIIQQQQ", file.bytes_at(at64, 56)
            )
            if mark != 0x06064B50 or at64 + 12 + length != limit - 20:
                raise _bad(file, "its 64-bit directory is not where it should be")
            limit = at64
    if disk or first or here != count:
        raise _bad(file, "it is split over several files")
    if size > MAX_DIRECTORY:
        raise _bad(file, f"its directory has {size} bytes, more than any checkpoint's")
    if start + size != limit:
        raise _bad(file, "its directory is not where it should be")
    return start, count, limit


def _central(file: RawFile, raw: bytes, at: int, directory: int) -> tuple[ZipRecord, int]:
    if at + 46 > len(raw) or raw[at : at + 4] != b"PK\1\2":
        raise _bad(file, f"its directory is broken at byte {at}")
    flags, method = struct.unpack_from("<HH", raw, at + 8)
    crc, packed, size, n_name, n_extra, n_comment, disk = struct.unpack_from("<IIIHHHH", raw, at + 16)
    header = struct.unpack_from("<I", raw, at + 42)[0]
    end = at + 46 + n_name + n_extra + n_comment
    if end > len(raw):
        raise _bad(file, f"its directory is broken at byte {at}")
    raw_name = raw[at + 46 : at + 46 + n_name]
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        name = raw_name.decode("cp437")
    if 0xFFFFFFFF in (packed, size, header):
        size, packed, header = _wide(file, raw[at + 46 + n_name : at + 46 + n_name + n_extra], size, packed, header)
    stored = method == 0
    if flags & 1 or disk:
        raise _bad(file, f"record {name[:100]!a} is encrypted or in another file")
    if stored and packed != size:
        raise _bad(file, f"record {name[:100]!a} has two sizes")
    if header + 30 > directory:
        raise _bad(file, f"record {name[:100]!a} lies outside the file")
    local = file.bytes_at(header, 30)
    l_flags, l_method = struct.unpack_from("<HH", local, 6)
    l_name, l_extra = struct.unpack_from("<HH", local, 26)
    offset = header + 30 + l_name + l_extra
    if local[:4] != b"PK\3\4" or l_method != method or (l_flags ^ flags) & 1 or l_name != n_name:
        raise _bad(file, f"record {name[:100]!a} and the directory disagree")
    if offset + packed > directory:
        raise _bad(file, f"record {name[:100]!a} lies outside the file")
    if file.bytes_at(header + 30, l_name) != raw_name:
        raise _bad(file, f"record {name[:100]!a} has another name in the file")
    return ZipRecord(name, header, offset, packed, crc, stored), end


def _wide(file: RawFile, extra: bytes, *values: int) -> list[int]:
    """The 64-bit values of the extra field 1, for those of size, packed size and header that are all ones."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if tag != 1:
            continue
        needed = sum(value == 0xFFFFFFFF for value in values)
        if len(body) < 8 * needed:
            break
        wide = iter(struct.unpack_from(f"<{needed}Q", body))
        return [next(wide) if value == 0xFFFFFFFF else value for value in values]
    raise _bad(file, "a record's 64-bit size is missing")
