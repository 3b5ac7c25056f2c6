"""Builds the container image of rwkvflow itself, from a wheel of it and the wheels that it needs.

    python scripts/build_image.py                         # builds this machine's wheel first; `make image`
    python scripts/build_image.py dist/rwkvflow-….whl
    python scripts/build_image.py dist/rwkvflow-….whl --push ghcr.io/owner/rwkvflow   # what a release does

The base is the one that a recipe gets: the slim image of this Python, or one of Debian packages. What goes in are the
files of wheels, in the versions of requirements-dev.txt, as in the images that recipes run in: no installer, and
nothing is downloaded while the image is built. The same wheel on the same base gives the same image, whose id is told.

`--push` pushes it as vX.Y.Z, and as `latest` too unless that is a pre-release; the last line is its name by digest. The
login is Docker's.
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
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkvflow.base.errors import PublishError  # noqa: E402 - the checkout's own
from rwkvflow.base.hashing import file_digest  # noqa: E402
from rwkvflow.base.shipped import shipped  # noqa: E402
from rwkvflow.documents.destinations import OciDestination  # noqa: E402
from rwkvflow.documents.lock import LockedWheel  # noqa: E402
from rwkvflow.net.packages.wheels import download_wheels, resolve_wheels  # noqa: E402
from rwkvflow.plan.step import StepLimits  # noqa: E402
from rwkvflow.sandbox.daemon import connect, platform_of  # noqa: E402
from rwkvflow.sandbox.image.archive import ArchiveEntry  # noqa: E402
from rwkvflow.sandbox.image.base_choice import Bases  # noqa: E402
from rwkvflow.sandbox.image.base_image import ensure_base  # noqa: E402
from rwkvflow.sandbox.image.dockerfile import pinned_reference, render_tool_dockerfile  # noqa: E402
from rwkvflow.sandbox.image.image_build import ImageBuild  # noqa: E402
from rwkvflow.sandbox.image.image_id import settle  # noqa: E402
from rwkvflow.sandbox.image.image_push import push_image  # noqa: E402
from rwkvflow.sandbox.image.unpack import unpacked  # noqa: E402
from rwkvflow.store.store import default_root  # noqa: E402
from scripts import build_wheels  # noqa: E402

BOOKWORM = 36  # glibc 2.36, the oldest of the bases that this may stand on
SITE = "site/opt/rwkvflow/site"  # of the context; what is below site/ is copied to the root
EXTRAS = ("s3", "serve", "sign")
PINS = ROOT / "requirements-dev.txt"


def metadata(wheel: Path) -> Message:
    """What a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        return email.parser.BytesParser().parsebytes(archive.read(name))


def needs(wheel: Path, extras: Iterable[str] = EXTRAS) -> list[str]:
    """What a wheel of rwkvflow requires, with some of its extras."""
    found = set()
    for text in metadata(wheel).get_all("Requires-Dist") or ():
        item = Requirement(text)
        if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            item.marker = None
            found.add(str(item))
    return sorted(found)


def pins(text: str) -> list[LockedWheel]:
    """The versions of a requirements file, as constraints."""
    rows = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return [LockedWheel(name=name, version=version, filename="-", sha256="0" * 64) for name, version in rows]


def source(wheel: Path) -> str | None:
    """Where the sources are, if the wheel says it."""
    places = dict(text.split(", ", 1) for text in metadata(wheel).get_all("Project-URL") or ())
    return places.get("Source")


def tags(version: Version) -> list[str]:
    """What a release's image is called: vX.Y.Z, and latest where people should get it who name no version."""
    return [f"v{version}".replace("+", "-"), *([] if version.is_prerelease or version.local else ["latest"])]


def push(tag: str, name: str, version: Version) -> None:
    """Push the image under its tags to registry/name; prints that name with its digest.

    Raises PublishError where the registry refuses it, or gives two tags of the image different digests.
    """
    client = connect()
    pushed = set()
    for each in tags(version):
        place = OciDestination.parse(f"oci://{name}:{each}")
        pushed.add(push_image(client, tag, place, lambda line: print(line, file=sys.stderr)))
    if len(pushed) > 1:
        raise PublishError(f"{name} has one image under several digests: {', '.join(sorted(pushed))}")
    print(pushed.pop())


def build(wheel: Path, tag: str, python: str, base_name: str | None, store: Path, wheelhouse: Path) -> None:
    """Build the image and name it; `wheelhouse` keeps the downloads."""
    client = connect()
    base = Bases(store, emit=lambda event: print(event, file=sys.stderr))(base_name, python)
    ensure_base(pinned_reference(base), client, print)
    platform = platform_of(client.info())
    kept = pins(PINS.read_text(encoding="utf-8"))
    locked = resolve_wheels(python, platform, needs(wheel), constraints=kept, glibc=BOOKWORM)
    download_wheels(locked, python=python, platform=platform, destination=wheelhouse, on_line=print)
    files = {wheelhouse / item.filename: frozenset({item.sha256}) for item in locked}
    files[wheel] = frozenset({file_digest(wheel).removeprefix("sha256:")})
    version = str(parse_wheel_filename(wheel.name)[1])
    entries = [
        ArchiveEntry("Dockerfile", render_tool_dockerfile(base, python, version, source(wheel)).encode()),
        ArchiveEntry("base/rwkvflow/stage.py", shipped("images/stage.py")),
        *(
            ArchiveEntry(f"site/opt/rwkvflow/site/{place}", item, item.executable)
            for place, item in unpacked(files).items()
        ),
    ]
    limits = StepLimits(time_s=1800)
    ImageBuild(client, limits, print, threading.Event()).run(entries, tag, {})
    built = str(client.images.get(tag).id)
    settle(tag, client, print)
    if client.images.get(tag).id != built:
        client.images.remove(built)  # and with it what the next build would take for its own: each one begins anew
    print(f"{tag} {client.images.get(tag).id}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?", help="A wheel of rwkvflow with librwkv; default: it is built")
    parser.add_argument("--tag", help="Name of the image; default rwkvflow:VERSION")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--base", metavar="IMAGE", help="Base image; default: as for a recipe that names none")
    parser.add_argument("--push", metavar="REGISTRY/NAME", help="Push it there, as vX.Y.Z and latest")
    parser.add_argument("--store", type=Path, default=default_root(), help="Where base images are kept")
    parser.add_argument("--wheels", type=Path, help="Where downloads are kept; default: nowhere")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        wheel = options.wheel or build_wheels.of_this_machine(here / "engine", here / "dist")
        version = parse_wheel_filename(wheel.name)[1]
        tag = options.tag or f"rwkvflow:{str(version).replace('+', '-')}"
        build(wheel, tag, options.python, options.base, options.store, options.wheels or here / "wheels")
        if options.push:
            push(tag, options.push, version)


if __name__ == "__main__":
    os.umask(0o022)
    main()
