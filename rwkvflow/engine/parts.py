"""Models in several files, numbered from 1: NAME-00001-of-00003.gguf and so on, .safetensors or .bin.

llama.cpp's parts of a GGUF say themselves what is in them; those of Hugging Face models have an index beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: Name, number and count of a part, as a whole file name.
PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.gguf|\.safetensors|\.bin)", re.DOTALL)


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


@dataclass(frozen=True)
class FileSet:
    """The files of one model, of which `number` was named, counted from 1."""

    stem: str
    number: int
    count: int
    suffix: str

    @property
    def names(self) -> tuple[str, ...]:
        """What its parts are called, in order."""
        return tuple(part_name(self.stem, number, self.count, self.suffix) for number in range(1, self.count + 1))

    @property
    def index(self) -> str | None:
        """The file that says which tensor is in which part; None where the parts say it themselves."""
        return None if self.suffix == ".gguf" else f"{self.stem}{self.suffix}.index.json"

    def place_of(self, name: str) -> str:
        """A part in a message: part 2 of 3, NAME."""
        number = f"part {self.names.index(name) + 1} of {self.count}, " if name in self.names else ""
        return f"{number}{name}"


def set_named(name: str) -> FileSet | None:
    """The set that a file of this name is of; None for a file that stands alone."""
    match = _PART.fullmatch(name)
    if match is None or int(match[3]) < 2 or not 1 <= int(match[2]) <= int(match[3]):
        return None
    return FileSet(match[1], int(match[2]), int(match[3]), match[4])


def is_later(name: str) -> bool:
    """Whether a file is another part than the first, which is what its model is named by."""
    found = set_named(name.rpartition("/")[2])
    return found is not None and found.number > 1
