"""Places where hostile code runs for real: a sandbox with the real worker in it, and what it must not get beside it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.shipped import PACKAGE
from rwkvflow.execute.base import Job, Made, Work
from rwkvflow.execute.commands import Commands
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.sandbox.base import EnvironmentSpec, Sandbox
from rwkvflow.sandbox.host import HostSandbox
from rwkvflow.sandbox.image.dockerfile import pinned_reference, render_dockerfile
from rwkvflow.sandbox.isolation.walls import walls
from rwkvflow.store.store import Store
from tests.e2e.conftest import base, client  # noqa: F401 - fixtures
from tests.wheels import make_wheel, requirement

CANARY = "canary-of-the-user-4711"
TOKEN = "hf_canaryTokenThatNobodyMayRead"  # noqa: S105 - of nobody
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
TAG = "7e" * 32
# In the place of a task of the worker's: it does what all do, runs a stranger's program and tells of its own output.
TASK = """
import hashlib, subprocess, sys
from pathlib import Path
from rwkvflow.worker.protocol import emit, progress

def run(request):
    progress(1, 2)
    for job in request["jobs"]:
        for name, place in job["outputs"].items():
            Path(place).write_text("what the worker made for " + job["id"])
    subprocess.run([sys.executable, "in/engine"], check=False)
    for job in request["jobs"]:
        emit(note={"job": job["id"], "key": "verdict", "value": "of the worker"})
        for name, place in job["outputs"].items():
            data = Path(place).read_bytes()
            emit(output={"job": job["id"], "name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    if Path("in/crash").exists():
        raise SystemExit(3)
"""


@dataclass
class Arena:
    """A sandbox, a store with something of another recipe's in it, and a user's files beside."""

    sandbox: Sandbox
    root: Path
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.home = self.root / "home"
        self.home.mkdir()
        self.canary = self.home / "secret"
        self.canary.write_text(CANARY)
        self.canary.chmod(0o600)
        precious = self.root / "precious"
        precious.write_text("a checkpoint of another recipe")
        self.precious = self.store.put_file(precious).digest
        self.log: list[str] = []
        self.progress: list[tuple[Any, ...]] = []

    def keep(self, line: str) -> None:
        """As a step's log has it, but bounded."""
        if len(self.log) < 1000:
            self.log.append(line[:200])

    @property
    def kept_in(self) -> bool:
        """Whether strangers' code is kept in here: in a container, or behind all walls."""
        return self.sandbox.name == "docker" or walls().whole

    @property
    def kept_from_modes(self) -> bool:
        """Whether it cannot reach modes, times and processes either: Landlock knows of none of them."""
        return self.sandbox.name == "docker" or (walls().namespaces and walls().readonly)

    def run(
        self,
        program: str,
        *,
        worker: bool = False,
        inputs: Mapping[str, str] | None = None,
        limits: StepLimits = StepLimits(time_s=60),  # noqa: B008 - immutable
        jobs: int = 1,
    ) -> dict[str, Any]:
        """What became of steps whose command is this program, or runs it as an engine."""
        files = {"engine": program, **(inputs or {})}
        paths, digests = {}, {}
        for name, text in files.items():
            path = self.root / f"new-{name}"
            path.write_text(text)
            digests[name] = self.store.put_file(path).digest
            found = self.store.path(digests[name])
            assert found is not None
            paths[name] = found
        params = {"task": "reference", "params": {}, "job": {}} if worker else {}
        command = ("python3", "-m", "rwkvflow.worker", "in/request.json") if worker else ("python3", "in/engine")
        todo = [
            Job(
                Step(f"step/{number}", "extra", "sandbox", params, {}, ("x",), command=command, limits=limits),
                "0" * 64, TAG, paths, digests, self.keep, self.keep,
                lambda *told: self.progress.append(told),
            )
            for number in range(jobs)
        ]  # fmt: skip
        with self.store.scratch() as folder:
            became = Commands(self.sandbox, self.store)(todo, Work(folder, limits, threading.Event()))
            results: dict[str, Any] = dict(became)
            for name, made in results.items():
                if isinstance(made, Made):
                    product = made.outputs["x"]
                    put = self.store.put_tree if product.path.is_dir() else self.store.put_file
                    results[name] = (put(product.path), made.notes)
        return results

    def untouched(self) -> None:
        """Nothing of the user's, and nothing of another recipe's, has changed."""
        assert self.canary.read_text() == CANARY
        if self.kept_from_modes:
            assert self.canary.stat().st_mode & 0o777 == 0o600
        path = self.store.path(self.precious)
        assert path is not None
        assert path.read_text() == "a checkpoint of another recipe"
        assert [item.name for item in self.home.iterdir()] == ["secret"]


def _spec(folder: Path, locked: Any) -> EnvironmentSpec:
    wheels = folder / "wheels"
    wheels.mkdir()
    hello = make_wheel(wheels, "hello", "1.2", {"hello.py": ""})
    tool = make_wheel(wheels, "tool", "3.0", {"tool.py": ""})
    code = folder / "worker"
    shutil.copytree(PACKAGE / "worker", code, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "tasks" / "reference.py").write_text(TASK)
    docker = locked is not None
    return EnvironmentSpec(
        tag=TAG,
        image="redteam",
        dockerfile=render_dockerfile(base=locked, python="3.11", engines=[]) if docker else "",
        base=pinned_reference(locked) if docker else None,
        python="3.11" if docker else PYTHON,
        wheels=wheels,
        requirements={
            "toolchain.txt": requirement(tool),
            "worker.txt": requirement(hello),
        },
        context={"code/rwkvflow/worker": code},
    )


@pytest.fixture(scope="session", params=["host", pytest.param("docker", marks=pytest.mark.docker)])
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Both sandboxes, each with an environment that holds the real worker."""
    folder = tmp_path_factory.mktemp(f"redteam-{request.param}")
    made: Sandbox
    if request.param == "host":
        made, locked = HostSandbox(folder / "environments"), None
    else:
        from rwkvflow.sandbox.docker import DockerSandbox

        locked = request.getfixturevalue("base")
        made = DockerSandbox(request.getfixturevalue("client"))
    made.build(_spec(folder, locked), StepLimits(time_s=500), lambda line: None, threading.Event())
    yield made
    made.remove(TAG)


@pytest.fixture
def arena(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """A fresh store and a fresh home; the token stands in this process's environment, as a user's does."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if os.getuid() == 0:  # else a container's user cannot even reach the inputs
        tmp_path.chmod(0o755)
    made = Arena(sandbox, tmp_path)
    yield made
    made.untouched()
