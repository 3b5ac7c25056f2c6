"""The recipe of what `convert --push` was asked for, carried out like any other: locked, proved, published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rwkvflow.app import pipeline
from rwkvflow.base.errors import UsageError
from rwkvflow.base.events import Listener, Notice
from rwkvflow.base.outputs import is_there, write_text
from rwkvflow.documents.sources import parse_repository
from rwkvflow.documents.template import guess_name


@dataclass(frozen=True)
class Push:
    """What to convert and where to publish it: `folder`, and `repository`, which is hf://owner/name or owner/name."""

    sources: tuple[str, ...]
    formats: tuple[str, ...]
    folder: Path
    repository: str
    lora: Path | None = None
    alpha: float | None = None
    state: Path | None = None
    ignore: tuple[str, ...] = ()
    split: str | None = None
    init: Path | None = None

    @property
    def recipe(self) -> Path:
        """The recipe stands beside the folder of the release, which holds nothing else."""
        return self.folder.with_name(f"{self.folder.name}.yaml")


def recipe_text(push: Push) -> str:
    """The recipe as YAML. Raises UsageError for a bad repository, and for sources whose files would be called alike."""
    repository = push.repository if push.repository.startswith("hf://") else f"hf://{push.repository}"
    parse_repository(repository)
    here = push.recipe.absolute().parent
    names = [guess_name(source) for source in push.sources]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two of the checkpoints would be called {max(names, key=names.count)}",
            remedy="rename a file, or write a recipe: rwkvflow init",
        )
    models = []
    for name, source in zip(names, push.sources, strict=True):
        model: dict[str, Any] = {"name": name, "source": _from(here, source)}
        if push.lora is not None:
            model["lora"] = {"source": _from(here, str(push.lora))}
            model["lora"] |= {} if push.alpha is None else {"alpha": push.alpha}
            model["lora"] |= {} if push.init is None else {"init": _from(here, str(push.init))}
        if push.state is not None:
            model["state"] = {"source": _from(here, str(push.state))}
        if push.ignore:
            model["ignore_tensors"] = list(push.ignore)
        models.append(model)
    document: dict[str, Any] = {"name": repository.rpartition("/")[2].partition("@")[0], "models": models}
    document["formats"] = list(push.formats)
    if push.split is not None:
        document["split"] = push.split
    document["publish"] = [{"to": push.folder.name}, {"to": repository}]
    head = f"# Written by rwkvflow convert --push. Again, from anywhere: rwkvflow run {push.recipe.name}\n"
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)


def _from(folder: Path, source: str) -> str:
    """A source as a recipe in `folder` names it."""
    if source.startswith(("hf://", "https://", "http://")):
        return source
    path = Path(source).absolute()
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_uri()


def carry_out(push: Push, request: pipeline.Request, emit: Listener) -> pipeline.Finished:
    """Write the recipe, and run it. Where it is there already, what is done of it is not done again.

    Raises UsageError where another recipe is in its place.
    """
    text = recipe_text(push)
    if not (push.recipe.is_file() and push.recipe.read_text(encoding="utf-8") == text):
        if is_there(push.recipe):
            raise UsageError(f"{push.recipe} exists already, and is another recipe", remedy="name another folder")
        push.recipe.parent.mkdir(parents=True, exist_ok=True)
        write_text(push.recipe, text, _paths(push.sources), force=False)
    emit(Notice(f"{push.recipe}: the recipe of this; {push.folder} and {push.repository} get what passes"))
    return pipeline.execute(pipeline.prepare(request, emit), emit)


def _paths(sources: Sequence[str]) -> list[Path]:
    return [Path(source) for source in sources if "://" not in source]
