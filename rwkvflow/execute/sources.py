"""Files of this machine that a run reads where they stand: a checkout that changes meanwhile must not get mixed in.

Their digests went into the steps' keys when the plan was made. What is read later has to be the same, or what is made
of it would stand under a key that is not its own, for good and, with a remote store, for everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.hashing import file_digest, tree_digest
from rwkvflow.plan.step import LocalInput, Step


def check_unchanged(step: Step) -> None:
    """Raises StepFailed where a file or folder is no longer what the plan was made with."""
    if (path := _changed(value for value in step.inputs.values() if isinstance(value, LocalInput))) is not None:
        raise StepFailed(
            f"{path} has changed since this run began",
            remedy="run again, which takes it as it is now; and leave a checkout alone while a run uses it",
        )


def _changed(sources: Iterable[LocalInput]) -> Path | None:
    for source in sources:
        if source.made_of:
            if (path := _changed(source.made_of)) is not None:
                return path
            continue
        try:
            digest = tree_digest(source.path) if source.path.is_dir() else file_digest(source.path)
        except OSError:  # it is gone, or is going
            return source.path
        if digest != source.digest:
            return source.path
    return None
