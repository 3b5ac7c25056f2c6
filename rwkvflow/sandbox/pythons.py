"""Finding a Python of a given version on this machine."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
_PROBE = (
    "import json, struct, sys; print(json.dumps(["
    "sys.implementation.name, '%d.%d' % sys.version_info[:2], struct.calcsize('P') * 8]))"
)


@dataclass(frozen=True)
class Python:
    """An interpreter: its path and version such as "3.11"."""

    path: Path
    version: str


def find_python(version: str) -> Path:
    """A 64-bit CPython of this version. Raises EnvironmentMissing that names those that are here."""
    if version == THIS and sys.implementation.name == "cpython":
        return Path(sys.executable)
    for path in _candidates(version):
        found = probe(path)
        if found and found.version == version:
            return found.path
    others = ", ".join(sorted({python.version for python in installed()})) or "none"
    raise EnvironmentMissing(
        f"no Python {version} on this machine (found: {others})",
        remedy=f"install it (apt-get install python{version}, pyenv install {version} or uv python install {version}), "
        "change `python` of the recipe's image, or use --sandbox docker",
    )


def installed() -> list[Python]:
    """All usable Pythons, one of each version, this one first."""
    found = {THIS: Python(Path(sys.executable), THIS)}
    for minor in range(9, 20):
        for path in _candidates(f"3.{minor}"):
            python = probe(path)
            if python:
                found.setdefault(python.version, python)
    return list(found.values())


def probe(path: Path) -> Python | None:
    """What this program is, None where it is no 64-bit CPython or does not run (a pyenv shim without its version)."""
    lines: list[str] = []
    try:
        done = process.run([str(path), "-I", "-c", _PROBE], env={"PATH": os.defpath}, timeout=20, on_line=lines.append)
        name, version, bits = json.loads(lines[-1]) if done.exit_code == 0 and lines else (None, None, None)
    except (EnvironmentMissing, OSError, ValueError):
        return None
    return Python(path, str(version)) if name == "cpython" and bits == 64 else None


def _candidates(version: str) -> Iterator[Path]:
    """Existing programs with the usual names, most trusted first; never twice the same file."""
    seen = set()
    names = [shutil.which(f"python{version}")]
    home = Path.home()
    folders = [
        (Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions", f"{version}.*/bin/python{version}"),
        (home / ".local/share/uv/python", f"cpython-{version}.*/bin/python{version}"),
        (Path("/opt/python"), f"*{version}*/bin/python{version}"),
        (Path("/usr/local/bin"), f"python{version}"),
        (Path("/usr/bin"), f"python{version}"),
    ]
    for folder, pattern in folders:
        names += sorted(map(str, folder.glob(pattern)), reverse=True)
    for name in names:
        if name and (real := os.path.realpath(name)) not in seen and os.path.exists(name):  # noqa: PTH110 - where a folder may not be read, there is nothing
            seen.add(real)
            yield Path(name)
