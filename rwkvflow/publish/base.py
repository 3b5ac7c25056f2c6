"""What every destination can do: say what publishing would change, and make it so; both as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rwkvflow.base.errors import PublishError, StoreError
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.text import bytes_text
from rwkvflow.net.progress import Told
from rwkvflow.release.artifacts import ReleaseFile
from rwkvflow.release.release import Release

Kind = Literal["add", "replace", "delete"]
_MARKS: Mapping[Kind, str] = {"add": "+", "replace": "~", "delete": "-"}


@dataclass(frozen=True)
class FileChange:
    """One file that publishing would write or remove; `size` in bytes is what would be sent at most."""

    kind: Kind
    path: str
    size: int = 0


@dataclass(frozen=True)
class Changes:
    """What publishing a release would do to a destination."""

    to: str
    changes: tuple[FileChange, ...]
    unchanged: int  # files of the release that are there already
    notes: tuple[str, ...] = ()  # what happens besides: a repository is created, a tag is set

    @property
    def bytes(self) -> int:
        """To be sent at most; less where the destination has the contents under other names."""
        return sum(change.size for change in self.changes)

    def lines(self) -> list[str]:
        """For a person: what `--dry-run` prints."""
        lines = [f"{self.to}: nothing to do" if not self.changes and not self.notes else f"{self.to}:"]
        lines += [f"  {note}" for note in self.notes]
        for change in sorted(self.changes, key=lambda change: change.path):
            size = "" if change.kind == "delete" else f"  {bytes_text(change.size)}"
            lines.append(f"  {_MARKS[change.kind]} {change.path}{size}")
        if self.unchanged:
            lines.append(f"  = {self.unchanged} file{'s' if self.unchanged > 1 else ''} there already")
        return lines


@dataclass(frozen=True)
class Published:
    """What became of it. `to` is where the release now stands, exactly; `facts` is for people."""

    to: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a publisher is opened with, beside its place.

    options   what the recipe and the environment say of the place, by name
    folder    the recipe's: what paths are relative to
    key       that of the step; a folder remembers it
    """

    options: Mapping[str, Any]
    folder: Path
    key: str


class Publisher(Protocol):
    """A destination. Everything that fails raises PublishError (or StoreError, Interrupted) with what to do."""

    def plan(self, release: Release) -> Changes:
        """What `apply` would do now; changes nothing."""

    def apply(self, release: Release, told: Told) -> Published:
        """Make the destination hold the release: whole or not at all, where the destination can do that."""


class LocalPublisher(Publisher, Protocol):
    """Of a place that can be looked at without a network."""

    def intact(self) -> bool:
        """Whether the place still is what the step with this key published."""


def refuse_others(place: str, before: str | None, release: Release) -> None:
    """Raises PublishError where another recipe's release stands at a place; `before` is its name, None: not known."""
    if before is not None and before != release.name:
        raise PublishError(
            f"{place} holds the release {ascii(before)[1:-1][:100]}, and this recipe's is {release.name}",
            remedy="publish to another place; or remove that release yourself, if it is to be replaced",
        )


class Proven:
    """Checks each file of the store once before it is sent: damage must not be published."""

    def __init__(self) -> None:
        self._proven: set[str] = set()

    def check(self, file: ReleaseFile) -> None:
        """Raise StoreError unless the file still has the bytes that it had."""
        if isinstance(file.source, bytes) or file.path in self._proven:
            return
        if file.source.stat().st_size != file.size or file_digest(file.source) != file.digest:
            raise StoreError(
                f"{file.path}: its bytes in the store are not what they were",
                remedy="run `rwkvflow cache verify`, then again",
            )
        self._proven.add(file.path)


def content(file: ReleaseFile) -> bytes:
    """All bytes of a (small) file."""
    return file.source if isinstance(file.source, bytes) else file.source.read_bytes()
