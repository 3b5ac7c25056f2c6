"""One tree of errors. Each class fixes the exit code that `rwkvflow` ends with, and what that code means.

An error is written for the person who reads it: `message` says what is wrong, `remedy` what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class RwkvflowError(Exception):
    """Anything rwkvflow reports without a traceback. Exit code 1 unless a subclass says otherwise."""

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "an internal error, or a model file that cannot be used"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True, order=True)
class Finding:
    """One thing wrong in a document, where it stands (line and column count from 1)."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        at = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {at}{self.message}"


class DocumentError(RwkvflowError):
    """A recipe, workflow or lock that cannot be used; holds all findings, not only the first."""

    exit_code = 2
    meaning = "the command line, recipe or workflow is wrong; nothing was run"

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(sorted(findings))
        super().__init__("\n".join(str(finding) for finding in self.findings))


class UsageError(RwkvflowError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = DocumentError.exit_code
    meaning = DocumentError.meaning


class LockError(RwkvflowError):
    """The lock is absent, disagrees with the recipe, or cannot be made."""

    exit_code = 3
    meaning = "the lock is missing, disagrees with the recipe, or cannot be made"


class EnvironmentMissing(RwkvflowError):
    """Something this machine lacks: a Docker daemon, an image, an interpreter, a tool."""

    exit_code = 4
    meaning = "this machine lacks something: see `rwkvflow doctor`"


class StepFailed(RwkvflowError):
    """A step of the plan ended without its outputs."""

    exit_code = 5
    meaning = "a step failed"


class MachineFailed(StepFailed):
    """A step ended without its outputs for a reason that is the machine's; another machine may well make them."""


class SmokeFailed(RwkvflowError):
    """Some artifacts did not pass their smoke inference and were not published."""

    exit_code = 6
    meaning = "artifacts failed their smoke test; the others were published"


class FetchError(RwkvflowError):
    """A download failed, or what arrived is not what was asked for."""

    exit_code = 7
    meaning = "a download failed, or is not what was asked for"


class StoreError(RwkvflowError):
    """The store cannot be written (disk full, permissions) or a blob in it is damaged."""

    exit_code = 8
    meaning = "the store cannot be written, or is damaged"


class PublishError(RwkvflowError):
    """Publishing did not end in a complete release."""

    exit_code = 9
    meaning = "publishing failed, or a release is not what it claims to be"


class Interrupted(RwkvflowError):
    """Ctrl-C or SIGTERM; everything finished so far is in the store."""

    exit_code = 130
    meaning = "interrupted; the next run continues from there"


def exit_codes() -> dict[int, str]:
    """Every exit code of `rwkvflow` in ascending order, with what it means."""
    kinds: list[type[RwkvflowError]] = [RwkvflowError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {0: "success"} | dict(sorted((kind.exit_code, kind.meaning) for kind in kinds))
