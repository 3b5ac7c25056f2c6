"""What a build made: which file is the library, which the tool, and whether they may leave the build folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rwkvflow.worker.build import elf
from rwkvflow.worker.build.cmake_patch import glob_matches
from rwkvflow.worker.errors import WorkerError

SHARED = re.compile(r"\.(?:so(?:\.\d+)*|dylib|dll|wasm)$")
SHOWN = 8


def is_shared(name: str) -> bool:
    """Whether a file name is that of a shared library; those of CMake's own tests do not count."""
    return SHARED.search(name) is not None and "CMakeFiles/" not in name


def choose_library(names: Sequence[str], glob: str) -> str:
    """The one shared library that a glob means. Raises WorkerError listing what there is otherwise."""
    shared = [name for name in names if is_shared(name)]
    matching = [name for name in shared if glob_matches(glob, name)]
    if len(matching) == 1:
        return matching[0]
    listing = "".join(f"\n    {name}" for name in (matching or shared)) or " none"
    if matching:
        raise WorkerError(
            f"engine: library: {glob} matches several libraries:{listing}\n"
            "  what to do: set engine.library in the recipe to a glob for one of them"
        )
    static = [name for name in names if name.endswith(".a")]
    hint = f", only static ones: {', '.join(static[:SHOWN])}" if static and not shared else ""
    raise WorkerError(
        f"engine: library: no shared library matches {glob}; the build made:{listing}{hint}\n"
        "  what to do: set engine.library in the recipe, or turn shared libraries on in engine.cmake "
        "(BUILD_SHARED_LIBS: true in many projects)"
    )


def choose_tool(names: Sequence[str], executable: Callable[[str], bool]) -> str | None:
    """The tool named rwkv, where exactly one was built."""
    found = [name for name in names if name.rsplit("/", 1)[-1] in ("rwkv", "rwkv.exe") and executable(name)]
    return found[0] if len(found) == 1 else None


def check(binaries: Mapping[str, Path], names: Sequence[str], secret: Mapping[str, str]) -> None:
    """Raise WorkerError for a binary that holds a path of this machine or needs a library that stays behind.

    `binaries` maps the place in the output to the built file, `names` are all files of the build, and `secret` maps
    each path to be found nowhere to what is shown instead of it.
    """
    built = {name.rsplit("/", 1)[-1] for name in names if is_shared(name)}
    own = {path.name for path in binaries.values()}
    for name, path in binaries.items():
        data = path.read_bytes()
        if leaks := elf.strings_with(data, secret):
            shown = "".join(f"\n    {_hidden(leak, secret)}" for leak in leaks[:SHOWN])
            raise WorkerError(
                f"{name} holds paths of this machine, so it would be another file on every machine:{shown}\n"
                "  what to do: add a patch rule for the file that they come from; in its pattern @SOURCE@ and @BUILD@ "
                "stand for the folders"
            )
        if elf.is_elf(data) and (others := sorted(set(elf.needed(data)) & built - own)):
            raise WorkerError(
                f"{name} needs {', '.join(others)}, which this build made as well and which would stay behind\n"
                "  what to do: link statically, e.g. engine.cmake: {BUILD_SHARED_LIBS: false}"
            )


def _hidden(text: str, secret: Mapping[str, str]) -> str:
    for path in sorted(secret, key=len, reverse=True):
        text = text.replace(path, secret[path])
    return text
