"""Hatch's hooks: the version, a librwkv that was built before, and links of the README that lead somewhere from PyPI.

RWKVFLOW_WHEEL_LIBRARY names the folder that the engine's build made, with toolchain.json beside its files, and
RWKVFLOW_WHEEL_TAG the platform tag, such as manylinux_2_17_x86_64. Without them the wheel is a pure one, and so is
every editable install: librwkv is then built on first use. scripts/build_wheels.py sets both.

The version is that of the tag: v1.2.0 gives 1.2.0. A commit without one is no release and says which it is; a source
package says what it was made from.

RWKVFLOW_PROJECT_URL is where the sources are, such as https://github.com/owner/name, and RWKVFLOW_PROJECT_REF the tag
or branch. Whoever makes a release sets them (.github/workflows/release.yml), so that a fork's links are its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).resolve().parent
PLACE = "rwkvflow/_shipped/engine"
OF_TESTS = ("all-formats.yaml",)  # five megabytes of checkpoints that only it names


def version(root: Path = ROOT) -> str:
    """1.2.0 at the tag v1.2.0, 0+g and a commit elsewhere, 0+unknown without git; what a source package says in one."""
    info = root / "PKG-INFO"
    if info.is_file() and (found := re.search(r"^Version: (\S+)$", info.read_text(encoding="utf-8"), re.MULTILINE)):
        return found[1]
    if not (root / ".git").exists():  # below a repository of somebody else's
        return "0+unknown"
    argv = ["git", "describe", "--tags", "--match", "v[0-9]*", "--always", "--abbrev=12", "--dirty=.changed"]
    try:
        said = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "0+unknown"
    tag = re.fullmatch(r"v([0-9]+(?:\.[0-9]+)*(?:(?:a|b|rc)[0-9]+)?)", said)
    return tag[1] if tag else f"0+g{said.rpartition('-g')[2]}"


def shipped_recipes(folder: Path) -> list[Path]:
    """The recipes that go into a wheel, and the checkpoints that they name; those of the project's tests stay here."""
    recipes = [path for path in sorted(folder.glob("*.yaml")) if path.name not in OF_TESTS]
    text = "".join(path.read_text(encoding="utf-8") for path in recipes)
    return [*recipes, *(path for path in sorted((folder / "demo").iterdir()) if f"demo/{path.name}" in text)]


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the engine and the platform's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatch before it builds a wheel; `version` is "editable" for an editable install."""
        if self.target_name != "wheel" or version == "editable":
            return
        self.version_file = Path(tempfile.mkdtemp()) / "_version.py"
        self.version_file.write_text(f'__version__ = "{self.metadata.version}"\n', encoding="utf-8")
        build_data["force_include"][str(self.version_file)] = "rwkvflow/_version.py"
        for path in shipped_recipes(Path(self.root) / "recipes"):
            build_data["force_include"][str(path)] = f"rwkvflow/_shipped/{path.relative_to(self.root).as_posix()}"
        named = os.environ.get("RWKVFLOW_WHEEL_LIBRARY")
        if not named:
            return
        folder, tag = Path(named), os.environ.get("RWKVFLOW_WHEEL_TAG")
        libraries = [path for path in sorted((folder / "lib").iterdir()) if path.suffix in (".so", ".dylib", ".dll")]
        facts = [folder / name for name in ("build.json", "toolchain.json")]
        if len(libraries) != 1 or not all(path.is_file() for path in facts) or not tag:
            raise ValueError(f"{folder} is not one built engine, or RWKVFLOW_WHEEL_TAG is not set")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                build_data["force_include"][str(path)] = f"{PLACE}/{path.relative_to(folder).as_posix()}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatch when the wheel is there."""
        if (made := getattr(self, "version_file", None)) is not None:
            made.unlink()
            made.parent.rmdir()


def absolute(readme: str, url: str, ref: str) -> str:
    """The README with links and pictures that lead into the sources at `url`; those within the page stay."""

    def lead(found: re.Match[str]) -> str:
        kind = "raw" if found[1].startswith("!") else "blob"
        return f"{found[1]}({url}/{kind}/{ref}/{found[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#|/)([^)\s]+)\)", lead, readme)


class LinksHook(MetadataHookInterface):
    """The description that PyPI shows, and the project's addresses."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatch with the metadata of pyproject.toml."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        url = os.environ.get("RWKVFLOW_PROJECT_URL", "").rstrip("/")
        ref = os.environ.get("RWKVFLOW_PROJECT_REF") or f"v{metadata['version']}"
        if url:
            metadata["urls"] = {
                "Documentation": f"{url}/tree/{ref}/docs",
                "Changelog": f"{url}/blob/{ref}/CHANGELOG.md",
                "Issues": f"{url}/issues",
                "Source": url,
            }
        else:
            metadata["urls"] = {}
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, url, ref) if url else text}
