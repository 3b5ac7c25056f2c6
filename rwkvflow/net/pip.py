"""pip as lock and fetch use it: the user's own configuration, another machine's platform, wheels only."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing, Interrupted, LockError
from rwkvflow.net.http import scrub

GLIBC = 28  # minor version: what wheels may need at most; Debian 10 and later have it
TIMEOUT_S = 3 * 3600.0
_MACOS = "macosx_14_0"


@dataclass(frozen=True)
class Target:
    """What wheels are for: a CPython such as "3.11" and a platform such as "linux-x86_64"."""

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise LockError(f"{self.python!r} is not a Python version such as 3.11")
        if self.platform not in ("linux-x86_64", "linux-aarch64", "macos-arm64", "macos-x86_64"):
            raise LockError(
                f"there are no wheels for {self.platform}",
                remedy="linux-x86_64, linux-aarch64, macos-arm64 and macos-x86_64 are supported",
            )

    @property
    def tags(self) -> tuple[str, ...]:
        """pip's platform tags (PEP 600 and before), the newest first."""
        system, _, machine = self.platform.partition("-")
        if system == "macos":
            return (f"{_MACOS}_{machine}",)  # pip adds all older releases
        legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        oldest = 5 if machine == "x86_64" else 17
        tags: list[str] = []
        for minor in range(GLIBC, oldest - 1, -1):
            tags.append(f"manylinux_2_{minor}_{machine}")
            if minor in legacy:
                tags.append(f"{legacy[minor]}_{machine}")
        return (*tags, f"linux_{machine}")

    @property
    def markers(self) -> dict[str, str]:
        """PEP 508 environment markers of the target."""
        system, _, machine = self.platform.partition("-")
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": {"linux": "Linux", "macos": "Darwin"}[system],
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": {"linux": "linux", "macos": "darwin"}[system],
        }

    @property
    def options(self) -> list[str]:
        """Options of `pip install` and `pip download` that choose the target's wheels."""
        abi = "cp" + self.python.replace(".", "")
        chosen = ["--only-binary=:all:", "--python-version", self.python, "--implementation", "cp", "--abi", abi]
        for tag in self.tags:
            chosen += ["--platform", tag]
        return chosen


@dataclass
class Ran:
    """How pip ended, and all it printed."""

    ok: bool
    lines: list[str] = field(default_factory=list)

    @property
    def errors(self) -> str:
        """What it calls errors, else its last lines; without logins."""
        found = [line.removeprefix("ERROR: ") for line in self.lines if line.startswith("ERROR: ")]
        return scrub("\n".join(found or self.lines[-6:]))


def run_pip(
    target: Target,
    arguments: Sequence[str],
    *,
    scratch: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> Ran:
    """Run pip for a target; `scratch` is where its temporary files go, `environment` adds variables.

    Raises EnvironmentMissing where this Python has no pip, Interrupted.
    """
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        if on_line:
            on_line(scrub(line))

    launcher = str(Path(__file__).with_name("pip_target.py"))
    argv = [sys.executable, "-P", launcher, json.dumps(target.markers), *arguments]
    variables = {
        **os.environ,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_NO_COLOR": "1",
        "PIP_USER": "0",  # neither goes together with a target folder
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PYTHONUTF8": "1",
        **({"TMPDIR": str(scratch)} if scratch else {}),
        **(environment or {}),
    }
    done = process.run(argv, env=variables, timeout=TIMEOUT_S, on_line=hear, cancel=cancel)
    if done.cancelled:
        raise Interrupted("pip was stopped")
    if any("No module named 'pip'" in line or "No module named pip" in line for line in lines[-3:]):
        raise EnvironmentMissing(
            f"{sys.executable} has no pip, which resolves and downloads the wheels of images",
            remedy="run `python -m ensurepip`, or install pip into this environment",
        )
    return Ran(done.exit_code == 0, lines)


def versions(name: str, target: Target, cancel: threading.Event | None = None) -> list[str]:
    """Versions of a package that have a wheel for the target, the newest last; empty where there is none.

    Those of all: a constraint on the package in the user's configuration would make pip see a conflict, and list none.
    """
    arguments = ["download", "--no-deps", "--quiet", *target.options, f"{name}==0.dev0"]
    ran = run_pip(target, arguments, environment={"PIP_CONSTRAINT": os.devnull}, cancel=cancel)
    for line in ran.lines:
        if found := re.search(r"\(from versions: ([^)]*)\)", line):
            return [version for version in found[1].split(", ") if version != "none"]
    return []
