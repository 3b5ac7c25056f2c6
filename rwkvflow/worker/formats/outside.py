"""Formats from outside: installed packages that add some to the registry by an entry point.

    [project.entry-points."rwkvflow.formats"]
    blob = "rwkvflow_blob"

names a package (a folder) with the modules that a format's folder has here: `layout.py`, `run.py`, `card.py`. Inside a
sandbox the same package lies beside rwkvflow, with an entry point of its own. Imports the standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rwkvflow.worker.errors import WorkerError

GROUP = "rwkvflow.formats"


@dataclass(frozen=True)
class FormatPackage:
    """An installed package that names formats: its name and version, the name of the entry, the module, its folder."""

    name: str
    version: str
    entry: str
    module: str
    folder: Path

    @property
    def info(self) -> str:
        """The name of its folder of metadata, where it is copied to."""
        return f"{self.name.replace('-', '_')}-{self.version}.dist-info"

    def metadata(self) -> dict[str, str]:
        """The files of that folder: enough for the registry to find it there."""
        return {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n",
            "entry_points.txt": f"[{GROUP}]\n{self.entry} = {self.module}\n",
        }


@cache
def packages() -> tuple[FormatPackage, ...]:
    """All that are installed, by name. Raises WorkerError for one whose entry point leads nowhere."""
    found: dict[str, FormatPackage] = {}
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group != GROUP:
                continue
            name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
            package = FormatPackage(name, distribution.version, entry.name, entry.value, _folder(name, entry.value))
            found.setdefault(f"{name}:{entry.value}", package)  # the first on the path is the one that is imported
    return tuple(found[key] for key in sorted(found))


def _folder(name: str, module: str) -> Path:
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    places = list((spec.submodule_search_locations if spec else None) or ())
    if not places:
        raise WorkerError(
            f"the package {name} names formats in {module!a}, which is no package beside it. Repair or uninstall it."
        )
    return Path(places[0])
