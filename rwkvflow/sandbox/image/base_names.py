"""What base images made of Debian packages are called: the name tells what is in one, and so how to make it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.load import finding
from rwkvflow.documents.names import OWN, SUITES, own_base, python_of
from rwkvflow.documents.recipe import Recipe

PACKAGE = re.compile(r"^[a-z0-9][a-z0-9.+-]+$")  # Debian Policy Manual, 5.6.1


def refuse_other_python(recipe: Recipe, file: Path) -> None:
    """Raises DocumentError for images whose base has another Python than the recipe says; told before a build."""
    wrong = [
        other_python(file, index, image.base, there, image.python)
        for index, image in enumerate(recipe.images)
        if image.base is not None and (there := python_of(image.base)) not in (None, image.python)
    ]
    if wrong:
        raise DocumentError([item for error in wrong for item in error.findings])


def other_python(file: Path, index: int, base: str, there: str | None, python: str) -> DocumentError:
    """What is to be said where the base of a recipe's image number `index` has the Python `there`."""
    fitting = own_base(python)
    other = f", or the base {fitting}" if fitting else ""
    text = file.read_text(encoding="utf-8")
    place = ("images", index, "python") if re.search(r"^images:", text, re.MULTILINE) else ("image", "python")
    message = f"base image {base} has Python {there}, not {python}; write python: '{there}'{other}"
    return DocumentError([finding(file, place, message)])


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
    return f"{OWN}:" + "_".join((suite, *sorted(set(packages))))


def command_for(reference: str) -> str:
    """The command that makes a base image, as far as its name tells."""
    _, _, label = reference.partition(f"{OWN}:")
    suite, *packages = label.split("_")
    if suite not in SUITES or not all(map(PACKAGE.fullmatch, packages)):
        return "rwkvflow image bootstrap"
    words = [*(("--suite", suite) if suite != next(iter(SUITES)) else ())]
    words += [word for package in packages for word in ("--package", package)]
    return " ".join(("rwkvflow image bootstrap", *words))
