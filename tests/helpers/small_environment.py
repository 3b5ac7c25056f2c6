"""An environment that is made like any other, and is built in seconds: one small wheel, and no compiler."""

from __future__ import annotations

import os
from pathlib import Path

from rwkvflow.documents.lock import LockedBase
from rwkvflow.sandbox.base import EnvironmentSpec
from rwkvflow.sandbox.image.dockerfile import pinned_reference
from tests.wheels import make_wheel, requirement

# Stands where rwkvflow/worker does in an engine's stage: makes out/engine of in/source and a request.
WORKER = "import shutil\n{first}\nshutil.copytree('in/source', 'out/engine', symlinks=True)\n"


def small_environment(base: LockedBase, folder: Path, *, tag: str, first: str = "", time: int = 1) -> EnvironmentSpec:
    """One below `folder`; `first` is what the engine's build does first, `time` when all its files were written."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    hello = make_wheel(wheels, "hello", "1.0", {"hello/__init__.py": "said = 'hello'\n", "hello/other.py": "x = 1\n"})
    for name, text in (
        ("code/rwkvflow/__init__.py", ""),
        ("code/rwkvflow/worker/__init__.py", ""),
        ("code/rwkvflow/worker/__main__.py", WORKER.format(first=first)),
        ("engine/lib/librwkv.so", "an engine\n"),
        ("requests/librwkv.json", "{}"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for path in folder.rglob("*"):
        os.utime(path, (time, time))
    return EnvironmentSpec(
        tag=tag,
        image="small",
        dockerfile=_dockerfile(base),
        base=pinned_reference(base),
        python="3.11",
        wheels=wheels,
        requirements={"worker.txt": requirement(hello)},
        context={
            "code/rwkvflow": folder / "code/rwkvflow",
            "engines/librwkv": folder / "engine",
            "requests": folder / "requests",
        },
    )


def _dockerfile(base: LockedBase) -> str:
    """As it is rendered, but for the check of a compiler, which this one needs none of."""
    from rwkvflow.sandbox.image.dockerfile import render_dockerfile

    text = render_dockerfile(
        base=base, python="3.11", engines=["librwkv"], toolchain=False, labels={"org.example": "x"}
    )
    return "".join(line for line in text.splitlines(keepends=True) if "check-toolchain" not in line)
