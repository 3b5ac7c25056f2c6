"""A whole hub repository as a folder, for looking at what was published."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from rwkvflow.base.errors import FetchError
from rwkvflow.documents.sources import parse_repository, parse_source
from rwkvflow.net.download import fetch_file
from rwkvflow.net.http import Connection, Policy
from rwkvflow.net.hub import Hub


def fetch_repository(
    place: str,
    folder: Path,
    *,
    on_file: Callable[[str], None] = lambda path: None,
    cancel: threading.Event | None = None,
    policy: Policy | None = None,
) -> str:
    """Bring every file of hf://owner/name[@revision] into `folder`; returns the commit that they are of.

    `on_file` is told each path before it is fetched. Raises FetchError, StoreError (disk full), Interrupted.
    """
    repo, revision = parse_repository(place)
    with Connection(policy or Policy(), cancel) as connection:
        sources = Hub.of_environment().files(repo, revision, connection)
    if not sources:
        raise FetchError(f"{place} is empty", remedy="publish to it first")
    for source in sources:
        parse_source(str(source))  # the hub names the path: it must not lead out of the folder
        on_file(source.path)
        fetch_file(str(source), folder / source.path, recipe_folder=folder, cancel=cancel, policy=policy)
    return str(sources[0].revision)
