"""Where librwkv comes from for commands that have no recipe: named, in the store, or built into it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rwkvflow.base import machine
from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, UsageError
from rwkvflow.base.events import Event, Listener, Notice, StepFinished, silent
from rwkvflow.base.files import clear_errors, read_json
from rwkvflow.base.shipped import PACKAGE, shipped
from rwkvflow.engine.binding import LIBRARY_VARIABLE, NAMES
from rwkvflow.store.store import Store, default_root

RECIPE = "engine/engine.yaml"  # below the store; its lock stands beside it, so that a second build needs no network
OURS = b"rwkvflow_set_option"  # a function that only librwkv has
#: Whoever has no recipe can change none: this stands in the place of what messages of a build advise.
INSTEAD = (
    "install rwkvflow from the wheel of this platform, which has librwkv in it, or name one with --library; "
    "`rwkvflow doctor` says what this machine lacks"
)
_TEXT = """# Written by rwkvflow: the engine for commands that have no recipe.
name: engine
models: [{{name: demo, source: {source}, tokenizer: bytes}}]
formats: [ggml-f16]
image: {{python: "{python}"}}
"""


def find_library(named: Path | None = None, store: Path | None = None, emit: Listener = silent) -> Path:
    """The library to use: `named`, else $RWKVFLOW_LIBRARY, else librwkv of these sources, from wheel or store.

    Where the store has none, it is built into it, which takes about half a minute and the network once. Where that
    cannot be done, an older librwkv of the store will do, with a warning. Raises UsageError for a name that is no
    file, and what went wrong with building.
    """
    variable = os.environ.get(LIBRARY_VARIABLE)
    for what, path in (("--library", named), (LIBRARY_VARIABLE, Path(variable) if variable else None)):
        if path is not None:
            if not path.is_file():
                raise UsageError(f"{what}: there is no file {path}")
            return path
    root = store or default_root()
    found = in_wheel() or in_store(root)
    if found is not None:
        return found
    emit(Notice("building the engine, which is kept in the store"))
    try:
        return _build(root, emit)
    except RwkvflowError as error:
        error.remedy = INSTEAD
        older = next((library for library in _all(root) if OURS in library.read_bytes()), None)
        if older is None:
            raise
        emit(Notice(f"an older engine of the store is used, for none could be built: {error.message}", "warning"))
        return older


def in_wheel(folder: Path | None = None) -> Path | None:
    """The librwkv that came with the wheel of rwkvflow; None where there is none, or none of these sources."""
    from rwkvflow.execute.engine_of_wheel import FACTS, FOLDER, engine_of_wheel

    folder = folder or FOLDER
    target = (read_json(folder / FACTS) or {}).get("target")  # a wheel for musl has another one
    files = engine_of_wheel({**_request(), "target": target}, folder) or {}
    return files.get(f"lib/{NAMES.get(sys.platform, 'librwkv.so')}")


def in_store(root: Path) -> Path | None:
    """librwkv of these very sources, built with the recipe's defaults; None where the store has none."""
    from rwkvflow.worker.tasks.build_engine import request_digest

    wanted = None
    for library in _all(root):
        wanted = wanted or request_digest(_request(), PACKAGE / "engine")
        if (read_json(library.parent.parent / "build.json") or {}).get("request") == wanted:
            return library
    return None


def _all(root: Path) -> Iterator[Path]:
    """Every librwkv of the store that is for this machine, the newest first."""
    from rwkvflow.worker.build.toolchain import host_platform

    name, here = NAMES.get(sys.platform, "librwkv.so"), host_platform()
    built = [(path.stat().st_mtime_ns, path.parent / "lib" / name, path) for path in root.glob("trees/*/*/build.json")]
    for _, library, facts in sorted(built, reverse=True):
        if library.is_file() and (read_json(facts) or {}).get("platform") == here:
            yield library


def _request() -> dict[str, object]:
    from rwkvflow.stages.engine import plain_request
    from rwkvflow.worker.build.toolchain import host_platform

    return plain_request(host_platform())


def _build(root: Path, emit: Listener) -> Path:
    """Build librwkv as `rwkvflow engine build` does for a recipe without an engine; returns the library."""
    if not machine.HAS_FOLDER_HANDLES:
        raise EnvironmentMissing("librwkv is not here, and no sandbox of this system can build it", remedy=INSTEAD)
    from rwkvflow.app import pipeline

    recipe = root / RECIPE
    demo = shipped("recipes/demo/rwkv7-demo.pth")
    with clear_errors("store"):
        recipe.parent.mkdir(parents=True, exist_ok=True)
        text = _TEXT.format(source=_quoted(str(demo)), python=f"{sys.version_info[0]}.{sys.version_info[1]}")
        if not recipe.is_file() or recipe.read_text(encoding="utf-8") != text:
            recipe.write_text(text, encoding="utf-8")
    request = pipeline.Request(recipe, sandbox="host", store=root, publish=False)

    def heard(event: Event) -> None:
        emit(replace(event, message=_without_advice(event.message)) if isinstance(event, StepFinished) else event)

    prepared = pipeline.only_stages(pipeline.prepare(request, heard), ["engine"])
    finished = pipeline.execute(prepared, heard)
    finished.check()
    (target,) = prepared.plan.targets
    folder = Store(root).path(finished.outcomes[target].outputs["engine"].digest)
    if folder is None:
        raise RwkvflowError("the engine was built and is gone from the store", remedy="try again")
    return folder / "lib" / NAMES.get(sys.platform, "librwkv.so")


def _without_advice(message: str) -> str:
    """A step's message without what it advises to write into the recipe, which is none of the reader's."""
    return "\n".join(line for line in message.splitlines() if not line.strip().startswith(("what to do:", "remedy:")))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
