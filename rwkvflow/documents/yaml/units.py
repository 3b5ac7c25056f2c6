"""Durations and sizes as documents write them."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_BYTES = {"MiB": 1 << 20, "GiB": 1 << 30}
_FILE_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def seconds(duration: str) -> float:
    """Seconds in "90s", "30m" or "1.5h". ValueError for anything else."""
    number, unit = _split(duration, _SECONDS, "a duration such as 90s, 30m or 2h")
    return number * _SECONDS[unit]


def size_bytes(size: str) -> int:
    """Bytes in "512MiB" or "4GiB", rounded down. ValueError for anything else."""
    number, unit = _split(size, _BYTES, "a size such as 512MiB or 4GiB")
    return int(number * _BYTES[unit])


def any_bytes(size: str) -> int:
    """Bytes in "5 GB", "500MB", "1KiB" or "2GiB", rounded down. ValueError for anything else."""
    number, unit = _split(size.replace(" ", "", 1), _FILE_BYTES, "a size such as 5GB, 500MB or 2GiB")
    return int(number * _FILE_BYTES[unit])


def split_bytes(size: str) -> int:
    """As any_bytes; ValueError for nothing as well."""
    if not (found := any_bytes(size)):
        raise ValueError("files of no bytes hold nothing; give a size such as 5GB")
    return found


def _split(text: str, units: dict[str, int], expected: str) -> tuple[float, str]:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"expected {expected}, found {text!r}")
    return float(match[1]), match[2]
