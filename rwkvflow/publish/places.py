"""From what a recipe says to the publisher that does it; a folder of this machine is one, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvflow.base.files import read_json
from rwkvflow.documents.destinations import (
    FolderDestination,
    HubDestination,
    OciDestination,
    parse_destination,
)
from rwkvflow.net.progress import Told
from rwkvflow.publish.base import Change, Changes, Published, Publisher
from rwkvflow.publish.folder import publish_folder
from rwkvflow.release.names import STATE
from rwkvflow.release.release import Release


def publisher(params: Mapping[str, Any], folder: Path, key: str) -> Publisher:
    """The publisher of a publish step. `folder` is the recipe's; `key` is the step's, which a folder remembers."""
    place = parse_destination(str(params["to"]))
    if isinstance(place, FolderDestination):
        return FolderPublisher(folder_of(place, folder), key)
    if isinstance(place, HubDestination):
        from rwkvflow.publish.hub import HubOptions, HubPublisher

        branch = place.branch or params.get("branch") or "main"
        return HubPublisher(place.repo, HubOptions(branch, params.get("private"), params.get("tag")))
    if isinstance(place, OciDestination):
        from rwkvflow.publish.oci import OciPublisher

        return OciPublisher(place)
    from rwkvflow.publish.remote_folder import RemoteFolderPublisher

    return RemoteFolderPublisher(place.url)


def folder_of(place: FolderDestination, folder: Path) -> Path:
    """Where a folder is: relative to the recipe's, ~ is the user's home."""
    return Path(os.path.normpath(folder / Path(place.path).expanduser()))


class FolderPublisher:
    """A folder of this machine."""

    def __init__(self, target: Path, key: str) -> None:
        self.target, self.key = target, key

    def plan(self, release: Release) -> Changes:
        """By the digests that the folder remembers; files that were edited there are replaced as well."""
        state = read_json(self.target / STATE) or {}
        old = state.get("digests") if isinstance(state.get("digests"), dict) else {}
        there = {path: digest for path, digest in (old or {}).items() if (self.target / path).is_file()}
        new = {file.path: file for file in release.files}
        changes = [
            Change("replace" if path in there else "add", path, file.size)
            for path, file in new.items()
            if there.get(path) != file.digest
        ]
        changes += [Change("delete", path) for path in there if path not in new]
        written = sum(change.kind != "delete" for change in changes)
        return Changes(str(self.target), tuple(changes), len(new) - written)

    def apply(self, release: Release, told: Told) -> Published:
        """Make the new folder beside the old one, then change places."""
        publish_folder(release, self.target, key=self.key, on_bytes=told.progress)
        return Published(str(self.target), {"files": str(len(release.files))})
