"""A file that is arriving: its bytes so far, what they are a part of, and who may write them.

`<name>.part` holds what has arrived, `<name>.part.json` which object of which server it is a part of, `<name>.lock`
keeps other processes out. `<name>` itself appears by rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rwkvflow.base.errors import Interrupted
from rwkvflow.base.files import locked, read_json, sync, write_json
from rwkvflow.base.hashing import CHUNK
from rwkvflow.base.machine import AT_ONCE, EXCLUSIVE

HEAD = 512  # bytes kept to tell a page or a pointer from a file


class PartialFile:
    """What has arrived of a file, and what it is a part of; opened while the destination's lock is held."""

    def __init__(self, destination: Path, source: str) -> None:
        self.destination = destination
        self.source = source
        self.path = destination.with_name(destination.name + ".part")
        self.note = destination.with_name(destination.name + ".part.json")
        self.done = 0  # bytes
        self.total: int | None = None
        self.validator: str | None = None  # strong ETag or date of the server's object
        self.resumed = False  # some of the bytes were written by an earlier attempt
        self.head = b""
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> PartialFile:
        self._file = self.path.open("a+b")
        note = read_json(self.note)
        if note is None or note.get("source") != self.source:
            self.restart()
        else:
            total, validator = note.get("total"), note.get("validator")
            self.total = total if isinstance(total, int) else None
            self.validator = validator if isinstance(validator, str) else None
            self._file.seek(0)
            while chunk := self._file.read(CHUNK):
                self._count(chunk)
            self.resumed = self.done > 0
            if self.total is not None and self.done > self.total:
                self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self.done == 0:
            self.discard()

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes so far."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Forget all bytes."""
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate(0)
        self.note.unlink(missing_ok=True)
        self.done, self.total, self.validator, self.resumed, self.head = 0, None, None, False, b""
        self._hash = hashlib.sha256()

    def describe(self, total: int | None, validator: str | None) -> None:
        """Note which object the bytes belong to, before the first of them is written."""
        if (total, validator) != (self.total, self.validator) or not self.note.exists():
            self.total, self.validator = total, validator
            write_json(self.note, {"source": self.source, "total": total, "validator": validator}, durable=False)

    def append(self, chunk: bytes) -> None:
        """Write more bytes. Raises OSError when the disk is full."""
        if self._file is None:
            raise RuntimeError("the part is not open")
        self._file.write(chunk)
        self._count(chunk)

    def flush(self) -> None:
        """Hand what is buffered to the system, so that a kill loses nothing of it."""
        if self._file is not None:
            self._file.flush()

    def finish(self) -> None:
        """Make it the destination, durably."""
        self.flush()
        sync(self.path)
        self._close()
        self.path.replace(self.destination)
        sync(self.destination.parent)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Keep nothing."""
        self._close()
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _close(self) -> None:  # Windows neither moves nor removes what is open
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported by then
                self._file.close()
            self._file = None

    def _count(self, chunk: bytes) -> None:
        self.done += len(chunk)
        self._hash.update(chunk)
        if len(self.head) < HEAD:
            self.head += chunk[: HEAD - len(self.head)]


@contextlib.contextmanager
def alone(destination: Path, cancel: threading.Event | None) -> Iterator[None]:
    """One download of a destination at a time, over all processes."""
    path = destination.with_name(destination.name + ".lock")
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, EXCLUSIVE | AT_ONCE, leave=False))
            except BlockingIOError:
                if (cancel or threading.Event()).wait(0.1):
                    raise Interrupted("the download was stopped") from None
                continue
            yield
            return
