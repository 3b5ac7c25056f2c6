"""What base images made of Debian packages are called: the name tells what is in one, and so how to make it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.load import finding
from rwkvflow.documents.recipe import Recipe

SUITES: Mapping[str, str] = {"bookworm": "3.11", "trixie": "3.13"}  # Debian release -> its Python
PACKAGE = re.compile(r"^[a-z0-9][a-z0-9.+-]+$")  # Debian Policy Manual, 5.6.1


# Images of the registry's `python` say it in their tags: python:3.12.4-slim-bookworm.
_OFFICIAL = re.compile(r"(?:docker\.io/)?(?:library/)?python:(3\.[0-9]{1,2})(?![0-9]).*")


def python_of(reference: str) -> str | None:
    """The Python of a base image, as far as its name tells: 3.11 of rwkvflow-base:bookworm."""
    if official := _OFFICIAL.fullmatch(reference):
        return official[1]
    start, ours, label = reference.partition("rwkvflow-base:")
    return SUITES.get(re.split("[_@]", label)[0]) if ours and not start else None


def refuse_other_python(recipe: Recipe, file: Path) -> None:
    """Raises DocumentError for images whose base has another Python than the recipe says; told before a build."""
    text = file.read_text(encoding="utf-8")
    findings = []
    for index, image in enumerate(recipe.images):
        there = python_of(image.base)
        if there is not None and there != image.python:
            fitting = next((suite for suite, python in SUITES.items() if python == image.python), None)
            other = f", or the base rwkvflow-base:{fitting}" if fitting else ""
            place = ("images", index, "python") if re.search(r"^images:", text, re.MULTILINE) else ("image", "python")
            message = f"base image {image.base} has Python {there}, not {image.python}; write python: '{there}'{other}"
            findings.append(finding(file, place, message))
    if findings:
        raise DocumentError(findings)


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
