"""llama.cpp for tests: fetched from the package index and built once a checkout, kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.files import locked
from rwkvflow.base.hashing import tree_digest
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import LockedPackage
from rwkvflow.lock.pins import package
from rwkvflow.net.packages.source_package import fetch_package
from rwkvflow.sandbox.host import host_platform
from rwkvflow.stages.engine import TARGETS
from rwkvflow.stages.llama import KEPT, ROOT

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".rwkvflow" / "tests"
PARAMS = {
    "toolchain": "zig",
    "target": TARGETS[host_platform()],
    "cmake": {},
    "patches": [],
    "library": "**/librwkvflow-llama.*",
    "folder": ".",
    "stem": "libllama",
}


def prepared() -> Path:
    """A folder with llama/ (the built engine) and llama-source/; skips where the package index has no sources."""
    wanted = package("llama.cpp")
    project = shipped("images/llama.cpp")
    text = json.dumps([wanted.model_dump(), tree_digest(project), PARAMS, KEPT], sort_keys=True)
    place = CACHE / f"llama-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(place.with_suffix(".lock"), fcntl.LOCK_EX):  # several files of tests need it, in parallel
        if not (place / "llama" / "build.json").is_file():
            _build(place, project, wanted)
    return place


def _build(place: Path, project: Path, wanted: LockedPackage) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(project, place / "llama-source")
    scratch = place / "scratch"
    scratch.mkdir()
    try:
        fetch_package(
            wanted,
            place / "llama-source" / "llama.cpp",
            root=ROOT,
            kept=KEPT,
            scratch=scratch,
            cancel=threading.Event(),
        )
    except RwkvflowError as error:
        shutil.rmtree(place)
        pytest.skip(f"no sources of llama.cpp from the package index: {error}")
    work = place / "work"
    (work / "in").mkdir(parents=True)
    (work / "in" / "source").symlink_to(place / "llama-source")
    jobs = [{"id": "llama", "params": {}, "outputs": {"engine": "out/engine"}}]
    request = {"task": "build-engine", "params": {"name": "llama.cpp", **PARAMS}, "jobs": jobs}
    (work / "in" / "request.json").write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow.worker", "in/request.json"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (work / "out" / "engine").rename(place / "llama")
    shutil.rmtree(work)
    shutil.rmtree(scratch, ignore_errors=True)
