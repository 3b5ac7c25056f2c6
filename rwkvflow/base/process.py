"""The only way to subprocesses on the host: argument lists only, no shell, whole process groups."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rwkvflow.base.errors import EnvironmentMissing
from rwkvflow.base.lines import LineSplitter, Tail

PIECE = 1 << 16  # bytes read at a time
MESSAGE = 1 << 20  # characters of a line of standard output where that is not the log
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Completed:
    """How a process ended. `exit_code` is negative for a signal, as in subprocess."""

    exit_code: int
    seconds: float
    tail: str
    timed_out: bool = False
    cancelled: bool = False


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
    preexec: Callable[[], None] | None = None,
    on_output: Callable[[str], None] | None = None,
) -> Completed:
    """Run to the end, handing each line of output (both streams, merged) to `on_line` as it comes.

    With `on_output` the lines of standard output go there, and only those of standard error are the log.

    `env` replaces the environment as a whole. Past `timeout` seconds, or when `cancel` is set, the whole process
    group gets SIGTERM and, two seconds later, SIGKILL. Raises EnvironmentMissing where argv[0] does not exist.
    """
    start = time.monotonic()
    split = on_output is not None
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if split else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=preexec,
        )
    except (FileNotFoundError, PermissionError) as error:
        # A folder of PATH that may not be read makes a program that is not there "permission denied".
        path = (os.environ if env is None else env).get("PATH", os.defpath)
        if isinstance(error, FileNotFoundError) or ("/" not in argv[0] and shutil.which(argv[0], path=path) is None):
            raise EnvironmentMissing(f"{argv[0]}: no such program", remedy=f"install {argv[0]}") from error
        raise EnvironmentMissing(f"{argv[0]}: {error.strerror}", remedy="look at its mode and its folder's") from error
    tail = Tail(on_line or _ignore)
    log = LineSplitter(tail)
    pieces: queue.Queue[tuple[LineSplitter, bytes]] = queue.Queue(maxsize=64)  # a flood waits in the pipe, not here
    streams = [(process.stdout, LineSplitter(on_output, MESSAGE) if on_output else log)]
    streams += [(process.stderr, log)] if split else []
    left = threading.Event()
    for stream, splitter in streams:
        threading.Thread(target=_read, args=(stream, splitter, pieces, left), daemon=True).start()
    reading = len(streams)
    timed_out = cancelled = False
    try:
        while reading or process.poll() is None:  # what closes its output may go on
            timed_out = timeout is not None and time.monotonic() - start > timeout
            cancelled = cancel is not None and cancel.is_set()
            if timed_out or cancelled:
                break
            try:
                splitter, piece = pieces.get(timeout=0.1 if reading else 0.01)
            except queue.Empty:
                continue
            if piece:
                splitter.feed(piece)
            else:
                reading -= 1
        log.close()
    finally:
        left.set()
        if timed_out or cancelled or process.poll() is None:
            _stop(process)
    exit_code = process.wait()
    return Completed(exit_code, time.monotonic() - start, str(tail), timed_out, cancelled)


def _ignore(line: str) -> None:
    """Nobody listens."""


def _read(
    stream: IO[bytes] | None,
    splitter: LineSplitter,
    pieces: queue.Queue[tuple[LineSplitter, bytes]],
    left: threading.Event,
) -> None:
    """Pieces of a pipe into the queue until it ends or nobody takes them any more; the empty one is the end."""
    piece = b""
    while stream is not None:
        piece = os.read(stream.fileno(), PIECE)
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                pieces.put((splitter, piece), timeout=0.5)
                break
        if left.is_set() or not piece:
            stream.close()
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group, which may outlive its leader: a child can hold the pipe open."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)
