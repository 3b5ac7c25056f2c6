"""The hub's pages: addresses that people copy out of a browser, and what they are about."""

from __future__ import annotations

import re
from urllib.parse import unquote

_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)"
    r"(?:/(blob|resolve|raw|tree)/([^/?#]+)((?:/[^?#]*)?))?/?(?:[?#].*)?"
)
_OTHER_PAGES = (
    "api",
    "blog",
    "buckets",
    "collections",
    "datasets",
    "docs",
    "organizations",
    "papers",
    "spaces",
    "tasks",
)


def without_page(text: str) -> str:
    """The hub source that an address of the hub's pages means, as it is copied out of a browser; else the text itself.

    A page about a repository, a folder or a file, or the address of the file: all are asked for as hf:// is.
    """
    page = _PAGE.fullmatch(text)
    if page is None or page[1].split("/")[0] in _OTHER_PAGES:
        return text
    repo, _, revision, path = page.groups()
    at = f"@{revision}" if revision not in (None, "main") else ""
    return f"hf://{repo}{at}{unquote(path or '').rstrip('/')}"
