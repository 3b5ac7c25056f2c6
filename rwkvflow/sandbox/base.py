"""Where a Step's command runs. The same protocol for docker and host.

Every command sees the same layout, relative to its working directory, in every sandbox:

    in/<name>        each input, a file or a folder, read-only
    in/request.json  what to do (for rwkvflow's own worker tasks)
    out/<name>       where each output must stand when the command ends with 0

so argv holds no path of this machine, and the same argv runs in a container and on the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rwkvflow.plan.step import StepLimits

OnLine = Callable[[str], None]

# How a command's numeric libraries wait, which no result depends on. By default their threads wait for one another by
# using up the processor, so that a machine which has anything else to do takes twice as long.
WAITING = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "4"}


@dataclass(frozen=True)
class Command:
    """What to run. `argv[0] == "python3"` means the environment's own interpreter."""

    argv: tuple[str, ...]
    inputs: Mapping[str, Path]  # name -> file or folder on this machine
    request: bytes | None = None  # content of in/request.json
    env: Mapping[str, str] = field(default_factory=dict)
    on_output: OnLine | None = None  # where lines of standard output go; None: into the log, as standard error does
    trusted: bool = False  # the code that runs ships with rwkvflow, so it may fill caches that others use


@dataclass(frozen=True)
class Result:
    """How a command ended. Only exit_code 0 with neither flag set is success."""

    exit_code: int
    seconds: float
    out_of_memory: bool = False
    timed_out: bool = False
    cancelled: bool = False
    over_disk: int | None = None  # bytes that it occupied when it was ended for its disk limit
    tail: str = ""  # last lines of its output, for the error message


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made from. `tag` (the image step's key) names it; equal tags mean equal contents."""

    tag: str
    image: str  # the recipe's name for it
    dockerfile: str  # rendered text; the host sandbox ignores it
    base: str | None  # digest-pinned base image reference; None where no Docker is used
    python: str  # "3.11"
    wheels: Path  # folder with the locked wheels of this sandbox's platform
    requirements: Mapping[str, str]  # file name -> text of a pip --require-hashes file, e.g. "worker.txt"
    context: Mapping[str, Path]  # further folders of the build context: name -> folder
    labels: Mapping[str, str] = field(default_factory=dict)


class Sandbox(Protocol):
    """Builds environments and runs commands in them. Safe to use from several threads."""

    name: str  # "docker" | "host"

    @property
    def platform(self) -> str:
        """Which wheels it needs: "linux-x86_64", "linux-aarch64", "macos-arm64"."""

    def has(self, tag: str) -> bool:
        """Whether the environment with this tag is there and usable."""

    def sweep(self) -> int:
        """Remove what commands of dead runs left (containers, processes); how many there were."""

    def tags(self) -> list[str]:
        """The environments that there are."""

    def remove(self, tag: str) -> None:
        """Remove an environment."""

    def build(self, spec: EnvironmentSpec, limits: StepLimits, on_line: OnLine, cancel: threading.Event) -> None:
        """Make the environment. Raises StepFailed with the tail of the build log."""

    def run(
        self,
        tag: str,
        command: Command,
        workdir: Path,
        limits: StepLimits,
        on_line: OnLine,
        cancel: threading.Event,
    ) -> Result:
        """Run to the end; outputs then stand under workdir/out, which the caller made and owns."""
