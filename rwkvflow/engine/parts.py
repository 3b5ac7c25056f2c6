"""Models in several files: llama.cpp's parts of a GGUF, NAME-00001-of-00003.gguf and so on, numbered from 1."""

from __future__ import annotations

import re
from pathlib import Path

#: Name, number and count of a part, as a whole file name.
PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def part_name(stem: str, number: int, count: int, suffix: str = ".gguf") -> str:
    """The name of one of `count` files, numbered from 1, as llama.cpp and transformers build it."""
    return f"{stem}-{number:05d}-of-{count:05d}{suffix}"


def is_later_part(path: Path) -> bool:
    """Whether a file is named as another part than the first, which is the one that a model is opened by."""
    match = PART.fullmatch(path.name)
    return match is not None and int(match[2]) > 1


def parts_of(path: Path) -> list[Path]:
    """The files of the model that is opened by `path`, in order: that file, and the other parts where it is a first."""
    match = PART.fullmatch(path.name)
    if match is None or int(match[2]) != 1:
        return [path]
    count = int(match[3])
    return [path.with_name(part_name(match[1], number, count)) for number in range(1, count + 1)]
