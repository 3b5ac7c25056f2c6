"""Whether each format can hold the version of the model it is to be made of, told before anything is run.

A version is known from a checkpoint's names and shapes, so this looks at those that are on this machine already; the
convert stage refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rwkvflow.documents.lock import Lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.sources import LocalSource, parse_source
from rwkvflow.errors import UsageError
from rwkvflow.plan.matrix import Artifact, expand
from rwkvflow.store import Store
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import ALL_VERSIONS


def check_versions(artifacts: Iterable[Artifact], lock: Lock, folder: Path, store: Store) -> None:
    """Raises UsageError that names every format and model that do not go together. `folder` is the recipe's."""

    def path(model: str) -> Path | None:
        locked = lock.models[model]
        return _local(locked.resolved, folder) or store.path(f"sha256:{locked.sha256}")

    _check(artifacts, path)


def check_recipe_versions(recipe: Recipe, folder: Path) -> None:
    """The same where there is no lock yet: of the checkpoints that the recipe names by their paths."""
    sources = {model.name: model.source for model in recipe.models}
    _check(expand(recipe), lambda model: _local(sources[model], folder))


def _check(artifacts: Iterable[Artifact], path_of: Callable[[str], Path | None]) -> None:
    picky: dict[str, list[str]] = {}
    for artifact in artifacts:
        formats = picky.setdefault(artifact.model, [])
        if FORMATS[artifact.format].versions != ALL_VERSIONS and artifact.format not in formats:
            formats.append(artifact.format)
    problems = []
    for model, formats in picky.items():
        version = _version(path_of(model)) if formats else None
        bad = [name for name in formats if version is not None and version not in FORMATS[name].versions]
        if bad:
            problems.append(
                f"{model} is version {version}, which {' and '.join(bad)} cannot hold; "
                f"these can: {', '.join(name for name, item in FORMATS.items() if version in item.versions)}"
            )
    if problems:
        raise UsageError(
            "\n  ".join(problems),
            remedy="take the format out of the recipe, or the combination: matrix: {exclude: [{model: …, format: …}]}",
        )


def _local(source: str, folder: Path) -> Path | None:
    parsed = parse_source(source)
    return parsed.below(folder) if isinstance(parsed, LocalSource) else None


def _version(path: Path | None) -> str | None:
    """The version of the checkpoint at `path`, without numpy; None where it cannot be known."""
    from rwkvflow.worker import pth, safetensors_file
    from rwkvflow.worker.architecture import version_of
    from rwkvflow.worker.protocol import WorkerError
    from rwkvflow.worker.rawfile import RawFile
    from rwkvflow.worker.tensorinfo import TensorInfo

    if path is None:
        return None
    try:
        with RawFile(path) as file:
            reader = pth if file.bytes_at(0, min(file.size, 2)) == b"PK" else safetensors_file
            views = reader.read_index(file).views
        tensors: Mapping[str, TensorInfo] = {name: view.info for name, view in views.items()}
        return version_of(tensors)
    except (WorkerError, OSError):
        return None  # the stage that reads it says what is wrong with it
