"""llama.cpp's own Jinja for tests: a few files of its `common` library, which rwkvflow does not keep, and a program."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.files import locked
from rwkvflow.lock.pins import package
from rwkvflow.net.packages.source_package import fetch_package
from rwkvflow.stages.llama import ROOT

CACHE = Path(__file__).resolve().parents[2] / ".rwkvflow" / "tests"
PROGRAM = Path(__file__).with_name("chat_jinja.cc")
KEPT = ("common/*", "common/jinja", "vendor/nlohmann", "ggml/include")
PARTS = ("json", "unicode", *(f"jinja/{name}" for name in ("lexer", "parser", "runtime", "string", "value", "caps")))


def program() -> Path:
    """The program, built once for its source and llama.cpp's; skips where the package index has no sources."""
    wanted = package("llama.cpp")
    text = json.dumps([wanted.model_dump(), KEPT, PARTS, PROGRAM.read_text(encoding="utf-8")], sort_keys=True)
    place = CACHE / f"jinja-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(place.with_suffix(".lock"), fcntl.LOCK_EX):
        if not (place / "done").is_file():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            try:
                scratch = place / "scratch"
                scratch.mkdir()
                fetch_package(wanted, place / "source", root=ROOT, kept=KEPT, scratch=scratch, cancel=threading.Event())
            except RwkvflowError as error:
                shutil.rmtree(place)
                pytest.skip(f"no sources of llama.cpp from the package index: {error}")
            _compile(place)
            (place / "done").touch()
    return place / "chat_jinja"


def _compile(place: Path) -> None:
    found = shutil.which("g++") or shutil.which("clang++")  # zig would build a C++ library first
    compiler = [found] if found else [sys.executable, "-m", "ziglang", "c++"]
    common = place / "source" / "common"
    folders = (common, place / "source" / "vendor", place / "source" / "ggml" / "include")
    sources = [PROGRAM, *(common / f"{part}.cpp" for part in PARTS)]
    options = ["-std=c++17", "-O0", "-w", *(f"-I{folder}" for folder in folders), "-o", str(place / "chat_jinja")]
    done = subprocess.run([*compiler, *options, *map(str, sources)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
