"""What base images made of Debian packages are called: the name tells what is in one, and so how to make it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rwkvflow.base.errors import UsageError

SUITES: Mapping[str, str] = {"bookworm": "3.11", "trixie": "3.13"}  # Debian release -> its Python
PACKAGE = re.compile(r"^[a-z0-9][a-z0-9.+-]+$")  # Debian Policy Manual, 5.6.1


def check_packages(names: Iterable[str]) -> None:
    """Raises UsageError for what is no name of a Debian package."""
    for name in names:
        if not PACKAGE.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a Debian package")


def default_tag(suite: str, packages: Sequence[str] = ()) -> str:
    """What a base image is called: rwkvflow-base:bookworm, rwkvflow-base:bookworm_mesa-vulkan-drivers.

    Raises UsageError for what is no package, and for one whose name no tag can hold.
    """
    check_packages(packages)
    if impossible := [package for package in packages if "+" in package]:
        raise UsageError(f"a tag cannot hold the name {impossible[0]}", remedy="name the image with --tag")
    return "rwkvflow-base:" + "_".join((suite, *sorted(set(packages))))


def command_for(reference: str) -> str:
    """The command that makes a base image, as far as its name tells."""
    _, _, label = reference.partition("rwkvflow-base:")
    suite, *packages = label.split("_")
    if suite not in SUITES or not all(map(PACKAGE.fullmatch, packages)):
        return "rwkvflow image bootstrap"
    words = [*(("--suite", suite) if suite != next(iter(SUITES)) else ())]
    words += [word for package in packages for word in ("--package", package)]
    return " ".join(("rwkvflow image bootstrap", *words))
