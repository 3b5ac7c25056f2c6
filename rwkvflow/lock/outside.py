"""Files that a recipe names and that go into what it makes: in its own folder, unless the person says otherwise.

A recipe may be a stranger's. A template, a text, a key or an engine's sources outside of its folder are files of this
machine that it has no business with, and what they hold would end up in a release. (A checkpoint, an adapter or a
tokenizer may be anywhere: nothing but such a file is taken for one.)
"""

from __future__ import annotations

import os
from pathlib import Path

from rwkvflow.base.errors import UsageError
from rwkvflow.base.names import leads_outside
from rwkvflow.documents.lock import calibration_file
from rwkvflow.documents.recipe import Git, LocalFolder, Recipe
from rwkvflow.documents.sources import local_repository


def named_files(recipe: Recipe) -> dict[str, str]:
    """Where in the recipe → the path, of every file or folder whose contents reach a release as they are."""
    source = recipe.engine.source
    named = {
        "card.template": recipe.card and recipe.card.template,
        "smoke.text": recipe.smoke.text,
        "sign.key": recipe.sign and recipe.sign.key,
        "engine.source.path": source.path if isinstance(source, LocalFolder) else None,
        "engine.source.git": local_repository(source.git) if isinstance(source, Git) else None,
    }
    for model in recipe.models:
        named[f"models.{model.name}.imatrix.text"] = calibration_file(model)
    return {key: path for key, path in named.items() if path}


def check_inside(recipe: Recipe, folder: Path) -> None:
    """Raises UsageError where a file of `named_files` is not in the recipe's folder, by its path or by a link."""
    found = []
    for key, path in named_files(recipe).items():
        real = folder / Path(path).expanduser()
        if leads_outside(real, folder):
            found.append(f"{key}: {ascii(path)[1:-1]}")
        elif real.is_dir():
            found += [f"{key}: {ascii(link)[1:-1]}" for link in _links_out(real)]
    if found:
        raise UsageError(
            "the recipe names files outside of its folder:\n  " + "\n  ".join(found),
            remedy="say --allow-outside (or allow_outside: true in your workflow) if you know this recipe; "
            "or move them beside it",
        )


def _links_out(folder: Path) -> list[str]:
    """Links in a folder that lead out of it, relative to it."""
    found = []
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            if path.is_symlink() and leads_outside(path, folder):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)
