"""The engine that came with rwkvflow's wheel: a step on this machine that would build the very same takes it.

A container's engine is always built, in its image; so is every engine where somebody wants to know what a build gives:
`verify --rebuild`, `cache audit`. Tests hold the wheel's against a build, file by file.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from rwkvflow.base.files import read_json
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.plan.step import Step
from rwkvflow.stages.engine import BUILTIN
from rwkvflow.worker.build.toolchain import host_platform
from rwkvflow.worker.tasks.build_engine import request_digest

FOLDER = PACKAGE / "_shipped" / "engine"
FACTS = "build.json"
TOOLCHAIN = "toolchain.json"  # beside the engine: versions of the packages that built it, by name


def engine_of_wheel(params: dict[str, Any], folder: Path = FOLDER) -> dict[str, Path] | None:
    """The files of the wheel's engine by their places in one that is built of `params`; None where it is another.

    A wheel may stand on another machine than it is for (a shared folder), and sources may have been changed in place:
    build.json says for which platform, of what and with what options it was built, and what its files are.
    """
    facts = read_json(folder / FACTS)
    if facts is None or facts.get("platform") != host_platform():
        return None
    if facts.get("request") != request_digest(params, PACKAGE / "engine"):
        return None
    digests = facts.get("files")
    if not isinstance(digests, dict) or not all(_plain(name) for name in digests):
        return None
    files = {name: folder / name for name in digests}
    if any(not path.is_file() or file_digest(path) != digests[name] for name, path in files.items()):
        return None
    return {**files, FACTS: folder / FACTS}


def same_engine(step: Step, folder: Path = FOLDER) -> dict[str, Path] | None:
    """The same of what `step` would build, with the same versions of zig, CMake and Ninja; None for any other step."""
    params, wanted = step.params.get("params") or {}, step.params.get("toolchain")
    if step.params.get("task") != "build-engine" or not wanted or params.get("name") != BUILTIN:
        return None  # of other sources, or by the machine's own compiler
    try:
        versions = {str(name): str(version) for name, version, *_ in (parse_wheel_filename(row[0]) for row in wanted)}
    except InvalidWheelFilename:
        return None
    return engine_of_wheel(params, folder) if versions == read_json(folder / TOOLCHAIN) else None


def _plain(name: object) -> bool:
    """Whether a name is that of a file in the folder."""
    path = PurePosixPath(str(name))
    return not path.is_absolute() and ".." not in path.parts
