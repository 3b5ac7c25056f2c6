"""Names in documents: the types of those that become paths, and the page of one that is a repository's."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from rwkvflow.base.names import checked_part

#: One part of a path: a file's name, the name of a model or an image, a version.
Part = Annotated[str, AfterValidator(checked_part)]


HUB = "https://huggingface.co"


def repository_page(name: str) -> str:
    """The page of a hub repository, owner/name."""
    return f"{HUB}/{name}"
