"""The one kind of error of all that runs inside the sandbox."""

from __future__ import annotations


class WorkerError(Exception):
    """A failure with a message for the user; the worker prints it and exits with 1, no traceback."""


class UnknownModelError(WorkerError):
    """Its tensors make something else than any version that is known; told before it is downloaded or converted."""
