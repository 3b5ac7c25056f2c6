"""What a built library shows of itself: sections and needed libraries of an ELF file, and paths in any binary.

Layout: ELF-64 and ELF-32, little endian, System V gABI chapters 4 and 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from rwkvflow.worker.errors import WorkerError

SHT_SYMTAB, SHT_DYNAMIC = 2, 6
DT_NEEDED = 1
LONGEST_NAME = 1 << 12  # bytes of a name


def is_elf(data: bytes) -> bool:
    """Whether this is a little-endian ELF file."""
    return data[:4] == b"\x7fELF" and data[5:6] == b"\x01"


def section_names(data: bytes) -> list[str]:
    """Names of all sections, in file order. Raises WorkerError where the headers lead outside the file."""
    return [name for name, _, _, _ in _sections(data)]


def is_stripped(data: bytes) -> bool:
    """No symbol table and no debug sections; the dynamic symbols stay."""
    return not any(kind == SHT_SYMTAB or name.startswith((".debug", ".zdebug")) for name, kind, _, _ in _sections(data))


def needed(data: bytes) -> list[str]:
    """The libraries that an ELF file asks the loader for (DT_NEEDED), in order."""
    wide = data[4:5] == b"\x02"
    entry = "<qQ" if wide else "<iI"
    names = []
    sections = _sections(data)
    strings = bytes(next((body for name, _, body, _ in sections if name == ".dynstr"), b""))
    for _, kind, body, _ in sections:
        if kind == SHT_DYNAMIC:
            usable = len(body) - len(body) % struct.calcsize(entry)
            for tag, value in struct.iter_unpack(entry, body[:usable]):
                if tag == DT_NEEDED:
                    names.append(_string(strings, value))
    return names


def strings_with(data: bytes, needles: Iterable[str]) -> list[str]:
    """Printable strings (as `strings -n 4` finds them) that contain one of the needles, sorted."""
    wanted = [needle.encode() for needle in needles if needle]
    found = {run for run in re.findall(rb"[\t\x20-\x7e\x80-\xff]{4,}", data) if any(w in run for w in wanted)}
    return sorted(run.decode("utf-8", "replace") for run in found)


def _string(table: bytes, at: int) -> str:
    end = table.find(b"\0", at, at + LONGEST_NAME) if at >= 0 else -1
    if at >= len(table) or end < 0:
        raise WorkerError("damaged ELF file: a name lies outside its string table")
    return table[at:end].decode("utf-8", "replace")


def _sections(data: bytes) -> list[tuple[str, int, memoryview, int]]:
    """(name, type, content, offset) of each section. Nothing is copied: 65,535 sections may all be the whole file."""
    if not is_elf(data):
        raise WorkerError("not a little-endian ELF file")
    wide = data[4:5] == b"\x02"
    try:
        if wide:
            (table,) = struct.unpack_from("<Q", data, 0x28)
            size, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
            layout = "<IIQQQQ"
        else:
            (table,) = struct.unpack_from("<I", data, 0x20)
            size, count, names_at = struct.unpack_from("<HHH", data, 0x2E)
            layout = "<IIIIII"
        headers = [struct.unpack_from(layout, data, table + index * size) for index in range(count)]
    except (struct.error, OverflowError) as error:
        raise WorkerError(f"damaged ELF file: {error}") from error
    bodies = []
    for _, kind, _, _, offset, length in headers:
        empty = kind == 8  # SHT_NOBITS takes no room in the file
        if not empty and offset + length > len(data):
            raise WorkerError("damaged ELF file: a section lies outside the file")
        bodies.append(memoryview(b"" if empty else data)[offset : offset + length])
    if not headers:
        return []
    if names_at >= len(headers):
        raise WorkerError("damaged ELF file: no section names")
    names = bytes(bodies[names_at])
    return [
        (_string(names, header[0]), header[1], body, header[4]) for header, body in zip(headers, bodies, strict=True)
    ]
