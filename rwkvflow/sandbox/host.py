"""The host sandbox: a pinned virtual environment for each environment, behind the walls that the kernel has.

<root>/<tag>/venv/           interpreter and the worker's wheels
<root>/<tag>/toolchain/      the toolchain's wheels, as in the image's /opt/rwkvflow/toolchain
<root>/<tag>/code/           the folder above rwkvflow/worker
<root>/<tag>/complete.json   written last: without it the rest is a leftover of a killed build
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.base.files import clear_errors, no_space, read_json, remove, write_json
from rwkvflow.base.hashing import SKIPPED
from rwkvflow.base.machine import AT_ONCE, EXCLUSIVE, lock
from rwkvflow.net.packages.uv import find_uv
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import WAITING, Command, EnvironmentSpec, OnLine, Result
from rwkvflow.sandbox.image.archive import requirements_by_role, wheels_of
from rwkvflow.sandbox.image.dockerfile import ENVIRONMENT
from rwkvflow.sandbox.isolation.disk import DiskLimit
from rwkvflow.sandbox.isolation.memory import MemoryLimit
from rwkvflow.sandbox.isolation.walls import behind, of_python, walls
from rwkvflow.sandbox.pythons import find_python
from rwkvflow.worker.build.space import DiskSpace

MARKER = "complete.json"
LOCK_POLL_S = 0.2
PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")  # as worker/build/scratch.py has it


class HostSandbox:
    """Commands run as the user, with a clean environment, in a virtual environment of their own; see walls.py."""

    name = "host"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.platform = host_platform()

    @property
    def description(self) -> str:
        """What keeps commands in, in words."""
        return str(walls())

    # ---- environments --------------------------------------------------------------------------------------------

    def has(self, tag: str) -> bool:
        """Whether the environment was finished and its interpreter is still there."""
        folder = self.root / tag
        return read_json(folder / MARKER) is not None and (folder / "venv/bin/python").exists()

    def build(self, spec: EnvironmentSpec, limits: StepLimits, on_line: OnLine, cancel: threading.Event) -> None:
        """Make the virtual environment from the wheelhouse, offline. Two runs at once make it once.

        Raises EnvironmentMissing without a fitting Python, StepFailed with the end of uv's output.
        """
        with clear_errors(f"environment {spec.tag[:12]}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with self._alone(spec.tag, cancel):
                if self.has(spec.tag):
                    return
                folder = self.root / spec.tag
                remove(folder)
                folder.mkdir()
                try:
                    self._make(folder, spec, limits, on_line, cancel)
                except BaseException:
                    remove(folder)
                    raise
                write_json(folder / MARKER, {"image": spec.image, "python": spec.python, "tag": spec.tag})

    def tags(self) -> list[str]:
        """The tags of all finished environments."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{MARKER}"))

    def remove(self, tag: str) -> None:
        """Remove an environment; nothing happens where there is none."""
        with self._alone(tag, threading.Event()):
            (self.root / tag / MARKER).unlink(missing_ok=True)
            remove(self.root / tag)

    def _make(
        self, folder: Path, spec: EnvironmentSpec, limits: StepLimits, on_line: OnLine, cancel: threading.Event
    ) -> None:
        deadline = None if limits.time_s is None else time.monotonic() + limits.time_s

        def run(*argv: str | Path) -> None:
            left = None if deadline is None else max(0.1, deadline - time.monotonic())
            environment = {**ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder)}
            del environment["PYTHONDONTWRITEBYTECODE"]  # what is installed is compiled
            with DiskSpace([folder, tempfile.gettempdir()]) as disk:
                done = process.run(
                    [str(part) for part in argv], env=environment, timeout=left, on_line=on_line, cancel=cancel
                )
            if done.cancelled:
                raise StepFailed(f"environment {spec.image}: cancelled")
            if done.timed_out:
                raise StepFailed(
                    f"environment {spec.image}: took longer than {limits.time_s:g} s",
                    remedy="raise the stage's time limit in workflow.yaml",
                )
            if done.exit_code != 0 and disk.full:
                raise no_space(f"environment {spec.image}")
            if done.exit_code != 0:
                raise StepFailed(f"environment {spec.image}: {argv[0]} ended with {done.exit_code}\n{done.tail}")

        roles = requirements_by_role(spec.requirements)
        python = find_python(spec.python)
        on_line(f"virtual environment with {python}")
        run(python, "-I", "-m", "venv", "--without-pip", folder / "venv")
        for role, text in sorted(roles.items()):
            wheels_of(text, spec.wheels)  # what is absent is named here, before uv says it at length
            listed = folder / f"{role}.txt"
            listed.write_text(text, encoding="utf-8")
            argv: list[str | Path] = [find_uv(), "pip", "install", "--no-config", "--offline", "--no-progress"]
            argv += ["--python", folder / "venv/bin/python"]
            argv += ["--cache-dir", folder / "unpacked", "--link-mode", "hardlink"]
            argv += ["--no-index", "--find-links", spec.wheels, "--require-hashes", "--no-deps", "--compile-bytecode"]
            run(*argv, "-r", listed, *(() if role == "worker" else ("--target", folder / role)))
        remove(folder / "unpacked")
        skipped = shutil.ignore_patterns(*SKIPPED)
        for name, source in sorted(spec.context.items()):
            if PurePosixPath(name).parts[0] == "code":
                shutil.copytree(source, folder / name, ignore=skipped, dirs_exist_ok=True)

    @contextlib.contextmanager
    def _alone(self, tag: str, cancel: threading.Event) -> Iterator[None]:
        """One builder per tag, between threads and processes."""
        with (self.root / f"{tag}.lock").open("a") as file:
            while True:
                try:
                    lock(file, EXCLUSIVE | AT_ONCE)
                    break
                except BlockingIOError:
                    if cancel.wait(LOCK_POLL_S):
                        raise StepFailed("environment: cancelled while another run makes it") from None
            yield

    # ---- commands ------------------------------------------------------------------------------------------------

    def run(
        self,
        tag: str,
        command: Command,
        workdir: Path,
        limits: StepLimits,
        on_line: OnLine,
        cancel: threading.Event,
    ) -> Result:
        """Run to the end; then nothing of its process group is left. Outputs stand in workdir/out."""
        if not self.has(tag):
            raise EnvironmentMissing(f"there is no environment {tag[:12]}", remedy="run again: the image step makes it")
        _lay_out(workdir, command)
        folder = self.root / tag
        argv = list(command.argv)
        if argv[0] == "python3":
            argv[0] = str(folder / "venv/bin/python")
        scratch = _scratch(workdir)
        disk = DiskLimit(limits.disk, [workdir / "out", scratch])
        environment = {**self._environment(folder, scratch, limits), **command.env}
        write = [workdir / "out", scratch]
        if command.trusted:  # a cache that others use as well is for code that ships with rwkvflow
            cache = self.root / "zig-cache"
            cache.mkdir(exist_ok=True)
            environment.setdefault("RWKVFLOW_ZIG_CACHE", str(cache))
            write.append(Path(environment["RWKVFLOW_ZIG_CACHE"]))
        read = [workdir / "in", folder, *of_python(folder / "venv/bin/python")]
        read += [path.resolve() for path in command.inputs.values()]
        with MemoryLimit(limits.memory, cancel, disk) as limit:
            try:
                done = process.run(
                    behind(walls(), argv, read=read, write=write),
                    cwd=workdir,
                    env=environment,
                    timeout=limits.time_s,
                    on_line=on_line,
                    cancel=limit,
                    preexec=limit.remember,
                    on_output=command.on_output,
                )
            finally:
                if limit.session is not None:  # what the command left running in the background
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(limit.session, signal.SIGKILL)
                remove(scratch)
        tail = done.tail
        ours = limit.exceeded or disk.exceeded is not None
        exit_code = done.exit_code if done.exit_code >= 0 else 128 - done.exit_code
        if exit_code == 128 + signal.SIGKILL and not (ours or done.timed_out or done.cancelled):
            tail += "\nkilled by signal 9 from outside: this machine may have run out of memory"
        return Result(
            exit_code=exit_code,
            seconds=done.seconds,
            out_of_memory=limit.exceeded,
            timed_out=done.timed_out,
            cancelled=done.cancelled and not ours,
            over_disk=disk.exceeded,
            tail=tail,
        )

    def sweep(self) -> int:
        """Remove half-built environments that no run is building any more. Returns how many."""
        count = 0
        for folder in self.root.glob("*/"):
            if (folder / MARKER).exists():
                continue
            with (self.root / f"{folder.name}.lock").open("a") as file:
                try:
                    lock(file, EXCLUSIVE | AT_ONCE)
                except BlockingIOError:
                    continue
                if (folder / "venv").exists() and not (folder / MARKER).exists():
                    remove(folder)
                    count += 1
        return count

    def _environment(self, folder: Path, scratch: Path, limits: StepLimits) -> dict[str, str]:
        """Nothing of the user's environment but PATH: no tokens, no proxies, no locale."""
        environment = {
            **ENVIRONMENT,
            **WAITING,
            "PATH": f"{folder / 'venv/bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "PYTHONPATH": str(folder / "code"),
            "VIRTUAL_ENV": str(folder / "venv"),
        }
        if (folder / "toolchain").is_dir():
            environment["RWKVFLOW_TOOLCHAIN"] = str(folder / "toolchain")
        if limits.cores:
            environment["OMP_NUM_THREADS"] = str(max(1, int(limits.cores)))
        return environment


def _lay_out(workdir: Path, command: Command) -> None:
    """in/ with links to the inputs and the request, and out/."""
    inside = workdir / "in"
    remove(inside)
    for name in ("in", "out"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    for name, path in command.inputs.items():
        if not path.exists():
            raise StepFailed(f"input {name}: {path} does not exist")
        (inside / name).parent.mkdir(exist_ok=True)  # files of a folder are inputs of their own
        (inside / name).symlink_to(path.resolve())
    if command.request is not None:
        (inside / "request.json").write_bytes(command.request)


def _scratch(workdir: Path) -> Path:
    """A folder for temporary files, below the working directory unless its path has characters that builds dislike."""
    if PLAIN.fullmatch(str(workdir)):
        scratch = workdir / "tmp"
        scratch.mkdir(exist_ok=True)
        return scratch
    return Path(tempfile.mkdtemp(prefix="rwkvflow-")).resolve()


def host_platform() -> str:
    """This machine's, as the lock names it: linux-x86_64, linux-aarch64, macos-arm64, macos-x86_64."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return f"macos-{'arm64' if machine in ('arm64', 'aarch64') else machine}"
    return f"{sys.platform}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"
