"""Puts a librwkv that was built before into a wheel: hatch's build hook, which compiles nothing itself.

RWKVFLOW_WHEEL_LIBRARY names the folder that the engine's build made (lib/ and build.json), RWKVFLOW_WHEEL_TAG the
platform tag, such as manylinux_2_17_x86_64. Without them the wheel is a pure one, and so is every editable install:
librwkv is then built on first use. scripts/build_wheels.py sets both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "rwkvflow/_shipped/engine"


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library, its build.json and the platform's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatch before it builds a wheel; `version` is "editable" for an editable install."""
        named = os.environ.get("RWKVFLOW_WHEEL_LIBRARY")
        if self.target_name != "wheel" or version == "editable" or not named:
            return
        folder, tag = Path(named), os.environ.get("RWKVFLOW_WHEEL_TAG")
        libraries = [path for path in sorted((folder / "lib").iterdir()) if path.suffix in (".so", ".dylib", ".dll")]
        if len(libraries) != 1 or not (folder / "build.json").is_file() or not tag:
            raise ValueError(f"{folder} is not one built engine, or RWKVFLOW_WHEEL_TAG is not set")
        build_data["force_include"][str(libraries[0])] = f"{PLACE}/lib/{libraries[0].name}"
        build_data["force_include"][str(folder / "build.json")] = f"{PLACE}/build.json"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
