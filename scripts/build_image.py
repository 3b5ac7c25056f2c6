"""Builds the container image of rwkvflow itself, from a wheel of it and the wheels that it needs.

    python scripts/build_image.py                         # builds this machine's wheel first; `make image`
    python scripts/build_image.py dist/rwkvflow-….whl

The base is the one that a recipe gets: the slim image of this Python, or one of Debian packages. What goes in are the
files of wheels, in the versions of requirements-dev.txt, as in the images that recipes run in: no installer, and
nothing is downloaded while the image is built.
"""

from __future__ import annotations

import argparse
import email.parser
import os
import re
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkvflow.base.hashing import file_digest  # noqa: E402 - the checkout's own
from rwkvflow.base.shipped import shipped  # noqa: E402
from rwkvflow.documents.lock import LockedWheel  # noqa: E402
from rwkvflow.net.packages.wheels import download_wheels, resolve_wheels  # noqa: E402
from rwkvflow.plan.step import StepLimits  # noqa: E402
from rwkvflow.sandbox.daemon import connect, platform_of  # noqa: E402
from rwkvflow.sandbox.image.archive import ArchiveEntry  # noqa: E402
from rwkvflow.sandbox.image.base_choice import Bases  # noqa: E402
from rwkvflow.sandbox.image.base_image import ensure_base  # noqa: E402
from rwkvflow.sandbox.image.dockerfile import pinned_reference, render_tool_dockerfile  # noqa: E402
from rwkvflow.sandbox.image.image_build import ImageBuild  # noqa: E402
from rwkvflow.sandbox.image.unpack import unpacked  # noqa: E402
from rwkvflow.store.store import default_root  # noqa: E402
from scripts import build_wheels  # noqa: E402

BOOKWORM = 36  # glibc 2.36, the oldest of the bases that this may stand on
EXTRAS = ("s3", "serve", "sign")
PINS = ROOT / "requirements-dev.txt"


def needs(wheel: Path, extras: Iterable[str] = EXTRAS) -> list[str]:
    """What a wheel of rwkvflow requires, with some of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        metadata = email.parser.BytesParser().parsebytes(archive.read(name))
    found = set()
    for text in metadata.get_all("Requires-Dist") or ():
        item = Requirement(text)
        if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            item.marker = None
            found.add(str(item))
    return sorted(found)


def pins(text: str) -> list[LockedWheel]:
    """The versions of a requirements file, as constraints."""
    rows = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return [LockedWheel(name=name, version=version, filename="-", sha256="0" * 64) for name, version in rows]


def build(wheel: Path, tag: str, python: str, store: Path, wheelhouse: Path) -> None:
    """Build the image and name it; `wheelhouse` keeps the downloads."""
    client = connect()
    base = Bases(store, emit=lambda event: print(event, file=sys.stderr))(None, python)
    ensure_base(pinned_reference(base), client, print)
    platform = platform_of(client.info())
    kept = pins(PINS.read_text(encoding="utf-8"))
    locked = resolve_wheels(python, platform, needs(wheel), constraints=kept, glibc=BOOKWORM)
    download_wheels(locked, python=python, platform=platform, destination=wheelhouse, on_line=print)
    files = {wheelhouse / item.filename: frozenset({item.sha256}) for item in locked}
    files[wheel] = frozenset({file_digest(wheel).removeprefix("sha256:")})
    version = str(parse_wheel_filename(wheel.name)[1])
    entries = [
        ArchiveEntry("Dockerfile", render_tool_dockerfile(base, python, version).encode()),
        ArchiveEntry("base/rwkvflow/stage.py", shipped("images/stage.py")),
        *(ArchiveEntry(f"site/{place}", item, item.executable) for place, item in unpacked(files).items()),
    ]
    limits = StepLimits(time_s=1800)
    ImageBuild(client, limits, print, threading.Event()).run(entries, tag, {})
    print(f"{tag} {client.images.get(tag).id}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?", help="A wheel of rwkvflow with librwkv; default: it is built")
    parser.add_argument("--tag", help="Name of the image; default rwkvflow:VERSION")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--store", type=Path, default=default_root(), help="Where base images are kept")
    parser.add_argument("--wheels", type=Path, help="Where downloads are kept; default: nowhere")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        wheel = options.wheel or build_wheels.of_this_machine(here / "engine", here / "dist")
        tag = options.tag or f"rwkvflow:{str(parse_wheel_filename(wheel.name)[1]).replace('+', '-')}"
        build(wheel, tag, options.python, options.store, options.wheels or here / "wheels")


if __name__ == "__main__":
    os.umask(0o022)
    main()
