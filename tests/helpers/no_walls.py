"""`python no_walls.py WHAT COMMAND…`: runs a command as on a kernel that lacks Landlock, namespaces or both (Linux).

A seccomp filter answers the system calls as such a kernel would, for the command and all that it starts. WHAT is
`landlock`, `namespaces` or `walls`, which is both. With nothing but the standard library, as it runs before anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

ARCHITECTURES = {"x86_64": (0xC000003E, 272, 56), "aarch64": (0xC00000B7, 97, 220)}  # its number; unshare, clone
LANDLOCK, CLONE3, SETNS = (444, 445, 446), 435, {"x86_64": 308, "aarch64": 268}
NAMESPACES = 0x7E020000 | 0x80  # every CLONE_NEW… flag
CANNOT = 78  # exit code where there can be no such filter
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06


def _refuse(number: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, _ERRNO | number


def program(what: str) -> bytes:
    """The filter, in the instructions of classic BPF."""
    machine = platform.machine()
    audit, unshare, clone = ARCHITECTURES[machine]
    lines: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _ALLOW)]
    lines.append((_LOAD, 0, 0, 0))
    if what in ("landlock", "walls"):
        for number in LANDLOCK:
            lines += [(_EQUAL, 0, 1, number), _refuse(errno.ENOSYS)]
    if what in ("namespaces", "walls"):
        for number in (unshare, SETNS[machine], CLONE3):  # without clone3, libraries take clone, whose flags show
            lines += [(_EQUAL, 0, 1, number), _refuse(errno.ENOSYS)]
        lines += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, NAMESPACES), _refuse(errno.EINVAL)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def install(what: str) -> None:
    """From now on, in this process and all that it starts. Raises OSError where the kernel has no filters."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(what)
    held = ctypes.create_string_buffer(code, len(code))
    both = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, both, 0, 0):  # no new privileges; a filter
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(argv: Sequence[str]) -> None:
    """Become the command."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        sys.exit(CANNOT)
    try:
        install(argv[0])
    except OSError as error:
        print(f"no filter: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    os.execvp(argv[1], list(argv[1:]))  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
