"""The one kind of error of all that runs inside the sandbox."""

from __future__ import annotations

import errno


class WorkerError(Exception):
    """A failure with a message for the user; the worker prints it and exits with 1, no traceback."""


class UnknownModelError(WorkerError):
    """Its tensors make something else than any version that is known; told before it is downloaded or converted."""


class NoSpaceError(WorkerError):
    """What is to be written does not fit the disk; told before anything is written."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, says that a disk has no space left, or that a quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
