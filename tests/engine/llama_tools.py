"""llama.cpp's own llama-completion for tests, on the library that the other tests build; kept between runs."""

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
from rwkvflow.lock.pins import package
from rwkvflow.net.packages.source_package import fetch_package
from rwkvflow.sandbox.host import host_platform
from rwkvflow.stages.engine import TARGETS
from rwkvflow.stages.llama import ROOT
from tests.engine import llama_cpp

KEPT = ("common", "tools/completion", "vendor", "include", "ggml/include", "src/*")
FOLDERS = ("common", "tools/completion", "vendor", "vendor/cpp-httplib", "include", "ggml/include", "src")
SOURCES = ("common/*.cpp", "common/jinja/*.cpp", "common/parsers/*.cpp", "vendor/cpp-httplib/*.cpp")
#: What both have of one name (`common` has files of the library's) stays each one's own.
FLAGS = ("-std=c++17", "-O0", "-w", "-fvisibility=hidden", "-fvisibility-inlines-hidden")
BUILD = '#include "build-info.h"\n#include <cstdio>\n' + "".join(
    f"{kind}(void) {{ return {value}; }}\n"
    for kind, value in (
        ("int llama_build_number", "0"),
        ("const char * llama_commit", '""'),
        ("const char * llama_compiler", '""'),
        ("const char * llama_build_target", '""'),
        ("const char * llama_build_info", '"tests"'),
    )
)
BUILD += "void llama_print_build_info(const char * version, FILE * stream) { fputs(version, stream); }\n"


def sources() -> Path:
    """llama.cpp's `common` and llama-completion; skips where the package index has none."""
    wanted = package("llama.cpp")
    text = json.dumps([wanted.model_dump(), KEPT, FLAGS], sort_keys=True)
    place = llama_cpp.CACHE / f"completion-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    llama_cpp.CACHE.mkdir(parents=True, exist_ok=True)
    with locked(place.with_suffix(".lock"), fcntl.LOCK_EX):
        if not (place / "fetched").is_file():
            shutil.rmtree(place, ignore_errors=True)
            (place / "scratch").mkdir(parents=True)
            try:
                fetch_package(
                    wanted,
                    place / "source",
                    root=ROOT,
                    kept=KEPT,
                    scratch=place / "scratch",
                    cancel=threading.Event(),
                )
            except RwkvflowError as error:
                shutil.rmtree(place)
                pytest.skip(f"no sources of llama.cpp from the package index: {error}")
            (place / "fetched").touch()
    return place / "source"


def completion() -> Path:
    """The folder with llama-completion, built once for its sources. It takes minutes."""
    source = sources()
    place, library = source.parent, llama_cpp.prepared() / "llama" / "lib" / "libllama.so"
    with locked(place.with_suffix(".lock"), fcntl.LOCK_EX):
        if not (place / "bin" / "llama-completion").is_file():
            (place / "bin").mkdir(exist_ok=True)
            (place / "build-info.cpp").write_text(BUILD, encoding="utf-8")
            files = [place / "build-info.cpp", *sorted((source / "tools" / "completion").glob("*.cpp"))]
            files += [path for pattern in SOURCES for path in sorted(source.glob(pattern))]
            objects = [_compiled(path, place, source) for path in files]
            called = place / "bin" / "librwkvflow-llama.so"  # what the library calls itself
            called.unlink(missing_ok=True)
            called.symlink_to(library)
            out = place / "bin" / "llama-completion"
            _call("-o", str(out), *map(str, objects), str(called), "-Wl,-rpath,$ORIGIN", "-lpthread", "-ldl")
    return place / "bin"


def _compiled(path: Path, place: Path, source: Path) -> Path:
    made = place / f"{path.relative_to(place).as_posix().replace('/', '-')}.o"
    if not made.is_file():
        part = made.with_suffix(".part.o")
        folders = [f"-I{source / name}" for name in FOLDERS]
        _call(*FLAGS, *folders, "-c", str(path), "-o", str(part))
        part.rename(made)
    return made


def _call(*arguments: str) -> None:
    """The compiler of the library that it is linked with: theirs is one standard library of C++."""
    target = TARGETS[host_platform()]
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
