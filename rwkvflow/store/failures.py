"""What failed where, among workers that share a remote store: so that a step is not tried by each of a hundred.

    <url>/failures/<aa>/<key>/<round>@<worker>.json   a worker's failure at a step, for a reason that is the step's own

A disk that is full or an engine that is gone is the worker's reason; that is told nobody, for others may do the step.
What has failed must be tried again once its cause is mended, which no clock can tell. So those failures count that
workers of the same round told; where rounds have no name, those that were told since this worker began.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rwkvflow.base.errors import (
    EnvironmentMissing,
    FetchError,
    Interrupted,
    MachineFailed,
    RwkvflowError,
    SmokeFailed,
    StepFailed,
    StoreError,
    UsageError,
)
from rwkvflow.base.text import shown
from rwkvflow.store.conditional import create

ROUND = re.compile(r"[A-Za-z0-9._-]{0,64}")
WORKERS = 2  # that try a step which fails, where the workflow says no other number
FAILURE_BYTES, TEXT = 64 << 10, 2000
_KINDS: dict[int, type[RwkvflowError]] = {kind.exit_code: kind for kind in (RwkvflowError, StepFailed, SmokeFailed)}


@dataclass(frozen=True)
class Failure:
    """Why a step failed on a worker, as it said itself. `final`: nobody is to try it again."""

    worker: str  # its machine's name
    message: str
    remedy: str | None = None
    code: int = StepFailed.exit_code
    final: bool = False


def of_the_step(error: RwkvflowError | None) -> bool:
    """Whether another worker would most likely fail too."""
    own = (MachineFailed, EnvironmentMissing, StoreError, FetchError, Interrupted)
    return error is not None and not isinstance(error, own)


def told(found: Sequence[Failure]) -> RwkvflowError:
    """The error for those who leave a step that others have tried: the same message, remedy and exit code."""
    last = next((failure for failure in found if failure.final), found[0])
    where = ", ".join(sorted({failure.worker for failure in found}))
    times = f"{len(found)} workers" if len(found) > 1 else "a worker"
    return _KINDS.get(last.code, StepFailed)(f"{last.message}\n  so it was for {times} ({where})", remedy=last.remedy)


class Failures:
    """The failures at the steps of a store. Methods raise nothing for trouble with it: then nothing is known."""

    def __init__(self, system: Any, root: str, owner: str, round_: str = "") -> None:
        if not ROUND.fullmatch(round_):
            raise UsageError(
                f"--round {ascii(round_)[:80]} is no name", remedy="use letters, digits, dots, dashes; at most 64"
            )
        self._fs, self._root, self._owner, self.round = system, f"{root}/failures", owner, round_
        self._known: set[str] = set()  # keys at which something failed, whether that counts or not
        self._before: frozenset[str] = frozenset()
        if not round_:
            with contextlib.suppress(Exception):  # each kind of file system has errors of its own
                self._before = frozenset(_name(path) for path in system.find(self._root))

    def add(self, key: str, failure: Failure) -> None:
        """Tell the others."""
        entry = {"message": failure.message[:TEXT], "remedy": (failure.remedy or "")[:TEXT], "code": failure.code}
        entry |= {"worker": failure.worker, "final": failure.final}
        with contextlib.suppress(Exception):
            create(self._fs, f"{self._folder(key)}/{self.round}@{self._owner}.json", json.dumps(entry).encode())

    def of(self, key: str) -> list[Failure]:
        """Those at a step that count, in the order of their workers' names."""
        found = []
        with contextlib.suppress(Exception):
            folder = self._folder(key)
            self._fs.invalidate_cache(folder)
            for path in sorted(self._fs.ls(folder, detail=False)):
                self._known.add(key)
                if self._counts(_name(path)):
                    with contextlib.suppress(*ODD):
                        found.append(_parsed(self._fs.cat_file(path, start=0, end=FAILURE_BYTES)))
        return found

    def clear(self, key: str) -> None:
        """A step was done after all. Asks nothing where `of` found nothing."""
        if key not in self._known:
            return
        with contextlib.suppress(Exception):
            for path in self._fs.ls(self._folder(key), detail=False):
                self._fs.rm_file(path)

    def _counts(self, name: str) -> bool:
        if not name.endswith(".json"):
            return False
        return name.partition("@")[0] == self.round if self.round else name not in self._before

    def _folder(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}"


# What a failure that was told by anybody may end in, where it is none.
ODD = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def here(error: RwkvflowError, *, final: bool = False) -> Failure:
    """The failure of this worker."""
    return Failure(socket.gethostname(), error.message, error.remedy, error.exit_code, final)


def _name(path: object) -> str:
    return str(path).rpartition("/")[2]


def _parsed(data: bytes) -> Failure:
    entry = json.loads(data)
    remedy = shown(str(entry["remedy"]))[:TEXT]
    return Failure(
        shown(str(entry["worker"]))[:100].replace("\n", " "),
        shown(str(entry["message"]))[:TEXT],
        remedy or None,
        int(entry["code"]),
        entry["final"] is True,
    )
