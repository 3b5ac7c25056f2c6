"""Drives the command line as a user does: a process of its own, its exit code, its output, its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What --json printed."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    def steps(self, status: str) -> list[str]:
        """Ids of the steps that ended so."""
        return [e["step"] for e in self.events if e["event"] == "StepFinished" and e["status"] == status]


@dataclass(frozen=True)
class Project:
    """A folder with a recipe, and a store."""

    folder: Path
    store: Path

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a command: this test's, with the project's store."""
        return {**os.environ, "RWKVFLOW_STORE": str(self.store), "PYTHONPATH": str(ROOT), "CI": "1", **(env or {})}

    def __call__(self, *args: str, env: Mapping[str, str] | None = None, timeout: float = 900) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow", *args],
            cwd=self.folder,
            env=self.environment(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def until(self, moment: Callable[[dict[str, Any]], bool], sign: int, *args: str) -> Ran:
        """Run with --json and send a signal at the first event that `moment` picks."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rwkvflow", *args, "--json"],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("{") and moment(json.loads(line)):
                process.send_signal(sign)
                break
        rest, err = process.communicate(timeout=300)
        return Ran(process.returncode, "".join(lines) + rest, err)

    def write(self, name: str, text: str) -> Path:
        """Write a document."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def files(self, below: str = "out") -> dict[str, str]:
        """Relative path → sha256 of everything published below a folder; hidden state left out."""
        root = self.folder / below
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }


def kill(moment: str, *, stage: str) -> Callable[[dict[str, Any]], bool]:
    """Picks the first event of a kind in a stage."""
    return lambda event: event["event"] == moment and str(event.get("step", "")).startswith(stage)


SIGKILL = signal.SIGKILL

RECIPE = """\
name: small
models:
  - name: tiny4
    source: models/rwkv4-demo.pth
    tokenizer: bytes
formats: [ggml-f16, ggml-q5_1, safetensors]
smoke: {{prompts: ["The "], tokens: 8}}
publish:
  - to: out
{more}"""


def project(folder: Path, store: Path, *, seed: Path | None = None, more: str = "") -> Project:
    """A project with a small recipe. `seed` is a store whose wheels and environments are linked in, not downloaded."""
    (folder / "models").mkdir(parents=True)
    shutil.copy(DEMO / "rwkv4-demo.pth", folder / "models")
    (folder / "recipe.yaml").write_text(RECIPE.format(more=more), encoding="utf-8")
    if seed is not None and not store.exists():
        store.mkdir(parents=True)
        for part in ("downloads", "blobs", "trees", "index"):
            shutil.copytree(seed / part, store / part, copy_function=os.link)
    return Project(folder, store)
