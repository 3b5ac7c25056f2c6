"""From what a recipe says to the publisher that does it; a folder of this machine is one, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import EnvironmentMissing
from rwkvflow.base.files import read_json
from rwkvflow.base.named import named
from rwkvflow.documents.destinations import Destination, FolderDestination, RemoteDestination, parse_destination
from rwkvflow.documents.recipe import Recipe
from rwkvflow.net.progress import Told
from rwkvflow.publish.base import Changes, FileChange, Given, Published, Publisher
from rwkvflow.publish.folder import is_intact, publish_folder
from rwkvflow.release.names import STATE
from rwkvflow.release.provenance.signature import packages
from rwkvflow.release.release import Release

EXTRAS = {"s3fs": "s3"}  # by package, the extra of rwkvflow that brings it


def publisher(params: Mapping[str, Any], folder: Path, key: str) -> Publisher:
    """The publisher of a publish step. `folder` is the recipe's; `key` is the step's, which a folder remembers."""
    place = parse_destination(str(params["to"]))
    made: Publisher = named(place.publisher)(place, Given(params, folder, key))
    return made


def refuse_missing_packages(recipe: Recipe) -> None:
    """Raises EnvironmentMissing where a place of a recipe, or its signature, needs a package that is not installed.

    Told before hours of work. Nothing is imported: a package of a file system takes seconds.
    """
    for place, package in _file_systems(recipe):
        if find_spec(package) is None:
            what = f"'rwkvflow[{EXTRAS[package]}]'" if package in EXTRAS else package
            raise EnvironmentMissing(
                f"publishing to {place} needs {package}, which is not installed", remedy=f"pip install {what}"
            )
    if recipe.sign is not None:
        packages()


def extras_of(recipe: Recipe) -> set[str]:
    """The extras of rwkvflow that a recipe's places, and its signature, need."""
    found = {EXTRAS[package] for _, package in _file_systems(recipe) if package in EXTRAS}
    return found | ({"sign"} if recipe.sign is not None else set())


def _file_systems(recipe: Recipe) -> Iterator[tuple[Destination, str]]:
    """Each place that fsspec opens, and the package that it opens it with."""
    for wanted in recipe.publish:
        place = parse_destination(wanted.to)
        if isinstance(place, RemoteDestination):
            from fsspec.registry import known_implementations

            known = known_implementations.get(place.url.partition(":")[0], {})
            yield place, str(known.get("class", "fsspec")).partition(".")[0]


def folder_publisher(place: FolderDestination, given: Given) -> FolderPublisher:
    """As FolderDestination names it."""
    return FolderPublisher(place.folder(given.folder), given.key)


class FolderPublisher:
    """A folder of this machine."""

    def __init__(self, target: Path, key: str) -> None:
        self.target, self.key = target, key

    def intact(self) -> bool:
        """By sizes and times, not by bytes."""
        return is_intact(self.target, self.key)

    def plan(self, release: Release) -> Changes:
        """By the digests that the folder remembers; files that were edited there are replaced as well."""
        state = read_json(self.target / STATE) or {}
        old = state.get("digests") if isinstance(state.get("digests"), dict) else {}
        there = {path: digest for path, digest in (old or {}).items() if (self.target / path).is_file()}
        new = {file.path: file for file in release.files}
        changes = [
            FileChange("replace" if path in there else "add", path, file.size)
            for path, file in new.items()
            if there.get(path) != file.digest
        ]
        changes += [FileChange("delete", path) for path in there if path not in new]
        written = sum(change.kind != "delete" for change in changes)
        return Changes(str(self.target), tuple(changes), len(new) - written)

    def apply(self, release: Release, told: Told) -> Published:
        """Make the new folder beside the old one, then change places."""
        publish_folder(release, self.target, key=self.key, on_bytes=told.progress, on_line=told.log)
        return Published(str(self.target), {"files": str(len(release.files))})
