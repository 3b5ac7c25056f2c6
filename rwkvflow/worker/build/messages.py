"""What to show of a failed CMake run: its own lines that say why, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN = 40
WHAT = {
    "configure": "CMake could not configure the engine",
    "build": "the engine did not compile",
    "strip": "the engine could not be stripped",
}
COMPILER_ERROR = re.compile(r"error:|error while|undefined (?:reference|symbol)|FAILED:|\bError \d|Killed")
MISSING = re.compile(r"Could (?:NOT|not) find|not found|package configuration file")


def failure(step: str, lines: Sequence[str], code: int, toolchain: str) -> str:
    """The error message for a step ("configure", "build", "strip") that ended with `code` after these lines."""
    compiler = [line for line in lines if COMPILER_ERROR.search(line)]
    shown = cmake_errors(lines) if step == "configure" else compiler
    shown = shown or [line for line in lines if line.strip()][-SHOWN:]
    body = "".join(f"\n    {line}" for line in shown[:SHOWN])
    text = "\n".join(shown)
    remedy = _remedy(text, toolchain) if step == "configure" else ""
    if "error while loading shared libraries" in text:
        # A program of the project that runs during the build and needs a library of the same build.
        remedy = "\n  what to do: engine.cmake: {CMAKE_SKIP_RPATH: false, CMAKE_BUILD_RPATH_USE_ORIGIN: true}"
    return f"{WHAT[step]} (exit code {code}):{body}{remedy}"


def cmake_errors(lines: Sequence[str]) -> list[str]:
    """CMake's error messages: each starts in column 0 and goes on while lines are empty or indented."""
    shown: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("CMake Error"):
            inside = True
        elif line and not line[0].isspace():
            inside = False
        if inside and line.strip():
            shown.append(line)
    return shown


def _remedy(text: str, toolchain: str) -> str:
    if "CMAKE_POLICY_VERSION_MINIMUM" in text:
        return '\n  what to do: engine.cmake: {CMAKE_POLICY_VERSION_MINIMUM: "3.5"}'
    if not MISSING.search(text):
        return ""
    if toolchain == "zig":
        return (
            "\n  what to do: turn the dependency off in engine.cmake, or write toolchain: system and have it in the "
            "image; the zig toolchain sees none of this machine's libraries, so that its result is the same everywhere"
        )
    return "\n  what to do: install what is missing in the image, or turn the dependency off in engine.cmake"
