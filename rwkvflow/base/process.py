"""The only door to subprocesses on the host: argument lists only, no shell, whole process groups."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base.errors import EnvironmentMissing

TAIL_LINES = 40
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
) -> Completed:
    """Run to the end, handing each line of output (both streams, merged) to `on_line` as it comes.

    `env` replaces the environment as a whole. Past `timeout` seconds, or when `cancel` is set, the whole process
    group gets SIGTERM and, two seconds later, SIGKILL. Raises EnvironmentMissing where argv[0] does not exist.
    """
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=preexec,
        )
    except FileNotFoundError as error:
        raise EnvironmentMissing(f"{argv[0]}: no such program", remedy=f"install {argv[0]}") from error
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    timed_out = cancelled = False
    try:
        while True:
            timed_out = timeout is not None and time.monotonic() - start > timeout
            cancelled = cancel is not None and cancel.is_set()
            if timed_out or cancelled:
                break
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                break
            tail.append(line)
            if on_line:
                on_line(line)
    finally:
        if timed_out or cancelled or process.poll() is None:
            _stop(process)
    exit_code = process.wait()
    return Completed(exit_code, time.monotonic() - start, "\n".join(tail), timed_out, cancelled)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    if process.stdout is not None:
        for line in process.stdout:
            lines.put(line.rstrip("\r\n"))
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
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
