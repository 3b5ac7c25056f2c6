"""What a fuzzer needs to know of a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.worker.errors import WorkerError

Read = Callable[[bytes, Path], object]
Seeds = Callable[[Path], Sequence[bytes]]


@dataclass(frozen=True)
class Reader:
    """One way in for what strangers write.

    what      what is read, for the table in docs/concepts/reliability.md
    modules   modules below rwkvflow/ whose reading this drives, without ".py"
    seeds     real files, made below an empty folder: what changes begin from
    read      reads some bytes, with an empty folder for what has to be a file
    errors    how a reader refuses; whatever else it raises is a finding
    text      whether changes are those of texts: words and brackets, and no numbers of so many bytes
    """

    what: str
    modules: tuple[str, ...]
    seeds: Seeds
    read: Read
    errors: tuple[type[Exception], ...] = (RwkvflowError, WorkerError)
    text: bool = False
    words: tuple[bytes, ...] = field(default=(), repr=False)  # what its files are made of, for changes


def at(name: str, read: Callable[[Path], object]) -> Read:
    """A reader of a file of this name."""

    def call(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return call


def either(errors: type[Exception] | tuple[type[Exception], ...], calls: Iterable[Callable[[], object]]) -> None:
    """Several readers of the same bytes. All are called; it raises the last refusal where none of them reads it."""
    refused: Exception | None = None
    read = False
    for call in calls:
        try:
            call()
            read = True
        except errors as error:
            refused = error
    if refused is not None and not read:
        raise refused
