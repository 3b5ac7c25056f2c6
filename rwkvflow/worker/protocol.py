"""How the host talks to the worker: a JSON request in, signed lines and files out.

Request (in/request.json): {"task": name, "params": {...}, "jobs": [{"id": ..., "params": {...}, "outputs": {...}}]}
Paths in it are relative to the working directory. Messages are lines that start with MARK and carry JSON; progress
without a job is that of all of them:

    {"progress": {"done": 12, "total": 100, "unit": "B", "label": "blocks.0.att.key.weight", "job": id}}
    {"output": {"job": id, "name": "artifact", "sha256": hex, "size": bytes}}   an output that is complete
    {"note": {"job": id, "key": "perplexity", "value": "12.3"}}                 figures a person would like to see
    {"failed": {"job": id, "message": "...", "full": false}}                    this job, and only this one, failed;
                                                                                "full": the disk has no space left
    {"full": true}                                                              and for that the whole task ends

Where the request has "channel": PATH, that file holds a key, which the worker reads and removes before anything else
runs. From then on its messages go to what was its standard output, each with its number and signed with the key, while
all that it and the commands that it starts print goes to standard error. A command has neither the key nor a way into
the worker's memory, so what it prints is never a message; its progress is shown, and decides nothing.
Without a key, messages are unsigned lines among the rest, for tests and for use by hand. Every other line is log.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from rwkvflow.worker.errors import WorkerError

MARK = "::rwkvflow "
KEY_BYTES = 32
_PR_SET_DUMPABLE = 4


class Signer:
    """Numbers and signs messages. Both sides have one, and they go in step."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def sign(self, message: dict[str, Any]) -> str:
        """The line of the next message."""
        text = json.dumps(message, ensure_ascii=True)
        line = f"{MARK}{self._count} {self._seal(text)} {text}"
        self._count += 1
        return line

    def verify(self, line: str) -> dict[str, Any] | None:
        """The message in the line that the other side signed next; None for every other line."""
        if not line.startswith(MARK):
            return None
        number, _, rest = line[len(MARK) :].partition(" ")
        seal, _, text = rest.partition(" ")
        if number != str(self._count) or not hmac.compare_digest(seal.encode(), self._seal(text).encode()):
            return None
        self._count += 1
        message = json.loads(text)
        return message if isinstance(message, dict) else None

    def _seal(self, text: str) -> str:
        return hmac.new(self._key, f"{self._count} {text}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


_signer: Signer | None = None
_job: str | None = None
_out: IO[str] | None = None


def open_channel(path: Path) -> None:
    """Take the key from `path`, remove it, and part messages from all that is printed from now on.

    Raises WorkerError where there is no key: a worker that was told of one says nothing without it.
    """
    global _signer, _out
    _close_memory()
    try:
        key = path.read_bytes()
        path.unlink()
    except OSError as error:
        raise WorkerError(f"the key of the channel to the host cannot be read: {error}") from None
    if len(key) != KEY_BYTES:
        raise WorkerError("the key of the channel to the host is damaged")
    sys.stdout.flush()
    handle = os.dup(1)  # closed when a command is executed, as Python's descriptors are
    os.dup2(2, 1)
    _out = os.fdopen(handle, "w", encoding="utf-8")
    _signer = Signer(key)


def _close_memory() -> None:
    """Others of the same user may read neither this process's memory nor what /proc tells of it (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def emit(**message: Any) -> None:
    """Send one message."""
    if _signer is not None and _out is not None:
        _out.write(_signer.sign(message) + "\n")
        _out.flush()
        return
    sys.stdout.write(MARK + json.dumps(message, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def about(job: str | None) -> None:
    """Name the job that progress is about from now on; None: all of them."""
    global _job
    _job = job


def progress(done: float, total: float | None, unit: str = "", label: str = "") -> None:
    """Report how far a long piece of work has come."""
    told = {"done": done, "total": total, "unit": unit, "label": label}
    emit(progress=told if _job is None else {**told, "job": _job})


def parse(line: str) -> dict[str, Any] | None:
    """The message in an unsigned line, or None for a log line (a damaged marked line is log as well)."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
