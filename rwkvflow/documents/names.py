"""Names in documents: the types of those that become paths, pages of repositories, files in folders, base images.

A recipe that names no base gets the slim image of its Python, of the registry that serves Docker's official images;
where no registry is reached, the image of Debian packages that `rwkvflow image bootstrap` makes. Which of them it was
stands in the lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from rwkvflow.base.names import checked_part
from rwkvflow.engine.parts import set_named

#: One part of a path: a file's name, the name of a model or an image, a version.
Part = Annotated[str, AfterValidator(checked_part)]


HUB = "https://huggingface.co"


def repository_page(name: str) -> str:
    """The page of a hub repository, owner/name."""
    return f"{HUB}/{name}"


# ---- base images ----------------------------------------------------------------------------------------------------

SUITES: Mapping[str, str] = {"bookworm": "3.11", "trixie": "3.13"}  # Debian release -> its Python
OWN = "rwkvflow-base"
# What a recipe without a base got before there was a choice; locks of that time were made with it.
FORMER = f"{OWN}:bookworm"

#: Another registry for the official images, such as registry.example/mirror; `none`: do not ask any.
REGISTRY = "RWKVFLOW_REGISTRY"

# Images of the registry's `python` say it in their tags: python:3.12.4-slim-bookworm.
_OFFICIAL = re.compile(r"(?:docker\.io/)?(?:library/)?python:(3\.[0-9]{1,2})(?![0-9]).*")


def python_of(reference: str) -> str | None:
    """The Python of a base image, as far as its name tells: 3.11 of rwkvflow-base:bookworm."""
    if official := _OFFICIAL.fullmatch(reference):
        return official[1]
    start, ours, label = reference.partition(f"{OWN}:")
    return SUITES.get(re.split("[_@]", label)[0]) if ours and not start else None


def official_base(python: str) -> str | None:
    """The slim image of a Python, at the registry that the environment names; None where none is to be asked."""
    registry = os.environ.get(REGISTRY, "").strip().rstrip("/")
    if registry == "none":
        return None
    return f"{registry}/library/python:{python}-slim" if registry else f"python:{python}-slim"


def own_base(python: str) -> str | None:
    """The image of Debian packages with a Python; None where no release of Debian has it."""
    return next((f"{OWN}:{suite}" for suite, there in SUITES.items() if there == python), None)


def may_be_given(reference: str, python: str) -> bool:
    """Whether a lock may pin this base for a recipe that names none: a lock cannot bring one of its author's choice."""
    return reference in (f"python:{python}-slim", official_base(python), own_base(python))


def part_of(folder: str, name: str) -> str:
    """The source of a file in a folder that a source names; where that names a set by a part, beside that."""
    start, slash, last = folder.rpartition("/")
    last, mark, query = last.partition("?")
    if set_named(last) is not None:
        return f"{start}{slash}{name}{mark}{query}"
    return f"{folder.rstrip('/')}/{name}"
