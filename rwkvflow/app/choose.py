"""The files of a release to choose from: one of this machine, or of the hub, whose catalogue alone is fetched."""

from __future__ import annotations

from pathlib import Path

from rwkvflow.app.models import fetched
from rwkvflow.app.starts import source_meant
from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.base.events import Listener
from rwkvflow.documents.sources import is_remote
from rwkvflow.release.catalogue import of_catalogue, read_catalogue
from rwkvflow.release.choose import Runnable, of_quality
from rwkvflow.release.names import CATALOGUE, QUALITY
from rwkvflow.release.quality import read_quality
from rwkvflow.store.store import default_root


def listed(text: str, emit: Listener) -> tuple[str, list[Runnable]]:
    """(Name of the release, its artifacts). `text`: a folder, its catalogue.json or quality.json, or a hub repository.

    Raises UsageError for what is none, FetchError where the repository has no catalogue or cannot be asked.
    """
    meant = source_meant(text)
    if not is_remote(meant):
        return _read(_file(Path(text)))
    place = meant if meant.endswith(".json") else f"{meant.rstrip('/')}/{CATALOGUE}"
    try:
        return _read(fetched(place, default_root(), emit, endings=(".json",)))
    except FetchError as error:
        error.remedy = error.remedy or f"releases of rwkvflow have a {CATALOGUE}, but for those of older versions"
        raise


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return path / CATALOGUE if (path / CATALOGUE).is_file() else path / QUALITY


def _read(path: Path) -> tuple[str, list[Runnable]]:
    try:
        data = path.read_bytes()
        if path.name == QUALITY:
            quality = read_quality(data)
            return quality.release, of_quality(quality)
        catalogue = read_catalogue(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", remedy="name a release folder") from None
    except (ValueError, RecursionError) as error:
        kind = QUALITY if path.name == QUALITY else CATALOGUE
        raise UsageError(f"{path} is no {kind} of a release: {error}") from None
    return catalogue.release, of_catalogue(catalogue)
