"""A program of ours that ends for want of disk - a compiler, pip, git - ends the run as a full disk does: code 8.

The disk is a real one, of 4 MiB, in a mount namespace of a process of its own.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import FetchError, StoreError
from rwkvflow.net import git
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox import host
from rwkvflow.sandbox.base import EnvironmentSpec
from rwkvflow.worker.build import space
from rwkvflow.worker.build.space import DiskSpace, free
from rwkvflow.worker.errors import WorkerError, is_disk_full
from rwkvflow.worker.tasks.build_engine import BuildRun

SAYS_SO = "import sys; print('ld: No space left on device'); sys.exit(1)"
# As compilers do: what could not be written is removed, so that there is room again when somebody looks.
TIDY = """
import os, sys, time
try:
    with open("object", "wb") as file:
        while True:
            file.write(b"x" * 65536)
except OSError as error:
    time.sleep(0.2)  # of what else it does; the look-out comes by twenty times a second
    os.unlink("object")
    sys.exit("ld: " + os.strerror(error.errno))
"""
ON_A_SMALL_DISK = """
import ctypes, os, sys
uid, gid = os.getuid(), os.getgid()
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x00020000):
    sys.exit(77)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    open(f"/proc/self/{name}", "w").write(text)
if libc.mount(b"none", b"/", None, ctypes.c_ulong((1 << 14) | (1 << 18)), None):
    sys.exit(77)
if libc.mount(b"small", sys.argv[1].encode(), b"tmpfs", ctypes.c_ulong(0), b"size=4m"):
    sys.exit(77)
from tests.unit.worker.build import test_space
from pathlib import Path
test_space.compile_on(Path(sys.argv[1]))
"""


class Tools:
    """What `_call` takes of a toolchain."""

    name = "zig"

    def __init__(self, folder: Path) -> None:
        self.env = {"PATH": os.environ["PATH"], "TMPDIR": str(folder)}


def build_in(folder: Path, program: str) -> WorkerError:
    """The error that a build ends in whose compiler is this program."""
    run = object.__new__(BuildRun)
    run.source, run.build, run.redact, run.tools = folder, folder / "build", {}, Tools(folder)  # type: ignore[assignment]
    with pytest.raises(WorkerError) as caught:
        run._call([sys.executable, "-c", program], "build")
    return caught.value


def compile_on(folder: Path) -> None:
    """What is tried on the small disk."""
    error = build_in(folder, TIDY)
    assert not list(folder.glob("object"))
    left = free(folder)
    assert left is not None
    assert left > space.FULL, "there is room again, or this shows nothing"
    assert is_disk_full(error)
    assert not is_disk_full(build_in(folder, SAYS_SO))


def test_a_compiler_that_a_full_disk_ended_is_told_from_others(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel gives no mount namespace, so there is no small disk")
    assert done.returncode == 0, done.stderr


def test_what_a_compiler_says_of_the_disk_is_not_asked(tmp_path: Path) -> None:
    assert not is_disk_full(build_in(tmp_path, SAYS_SO))


def disk(monkeypatch: pytest.MonkeyPatch, blocks: int, files: int = 5) -> None:
    """All disks have this much left."""
    found = os.statvfs_result((4096, 4096, 1 << 20, blocks, blocks, 9, files, files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: found)


@pytest.mark.parametrize(
    ("blocks", "files", "full"), [(0, 5, True), (255, 5, True), (257, 5, False), (1 << 20, 0, True)]
)
def test_a_full_disk_has_no_bytes_or_no_names_left(
    monkeypatch: pytest.MonkeyPatch, blocks: int, files: int, full: bool
) -> None:
    disk(monkeypatch, blocks, files)
    with DiskSpace(["/"]) as look:
        pass
    assert look.full == full
    error = look.error()
    assert (error is not None and error.errno == errno.ENOSPC) == full


def test_disks_that_count_no_names_are_never_out_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs_result((4096, 4096, 1 << 20, 1 << 20, 1 << 20, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert free("/") == 4096 << 20


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    with DiskSpace([tmp_path / "gone"]) as look:
        pass
    assert not look.full
    assert look.error() is None


def failing_git(tmp_path: Path) -> None:
    git.fetch_git(str(tmp_path / "no-repository"), "c" * 40, tmp_path / "to/source")


def failing_pip(tmp_path: Path) -> None:
    from tests.wheels import requirement

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "bad-1-py3-none-any.whl").write_text("no wheel")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    bad = requirement(wheels / "bad-1-py3-none-any.whl")
    roles = {"worker.txt": bad}
    spec = EnvironmentSpec("7e" * 32, "small", "", None, python, wheels, roles, {})
    made: Any = host.HostSandbox(tmp_path / "environments")
    made.build(spec, StepLimits(time_s=60), lambda line: None, threading.Event())


def test_git_fails_by_itself_where_there_is_room(tmp_path: Path) -> None:
    with pytest.raises(FetchError):
        failing_git(tmp_path)


@pytest.mark.parametrize("tried", [failing_git, failing_pip])
def test_git_and_pip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Callable[[Path], None]) -> None:
    disk(monkeypatch, 3)
    with pytest.raises(StoreError, match="no space left") as caught:
        tried(tmp_path)
    assert caught.value.exit_code == 8
