"""Whether each format can hold the model it is made of, in files as small as `split` says: told before anything runs.

Version and sizes are known from a checkpoint's names and shapes, so this looks at those that are on this machine
already; the convert stage refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.check.torch import place_of_format
from rwkvflow.documents.load import finding
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.sources import parse_source
from rwkvflow.documents.yaml.nearest import did_you_mean
from rwkvflow.plan.matrix import Artifact, expand
from rwkvflow.store.store import Store
from rwkvflow.worker.formats import FORMATS, able_to_hold, too_large
from rwkvflow.worker.formats.base import Format, Split


def check_versions(
    artifacts: Iterable[Artifact],
    lock: Lock,
    folder: Path,
    store: Store,
    recipe: Recipe | None = None,
    file: Path | None = None,
) -> None:
    """Raises UsageError that names every format and model that do not go together. `folder` is the recipe's.

    With the recipe, its `split` and each model's group_norm_eps are looked at as well; with its file, places are named.
    """

    def path(model: str) -> Path | None:
        locked = lock.models[model]
        return _local(locked.resolved, folder) or store.path(f"sha256:{locked.sha256}")

    _check(artifacts, path, recipe, file)


def check_recipe_versions(recipe: Recipe, folder: Path, file: Path | None = None) -> None:
    """Check the versions without a lock, for the checkpoints that the recipe names by their paths."""
    sources = {model.name: model.source for model in recipe.models}
    _check(expand(recipe), lambda model: _local(sources[model], folder), recipe, file)


def check_recipe_files(recipe: Recipe, folder: Path, file: Path) -> None:
    """Raises DocumentError for checkpoints that the recipe names by their paths and that are not there."""
    findings = []
    for index, model in enumerate(recipe.models):
        path = _local(model.source, folder)
        if path is not None and not path.exists():
            names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            near = did_you_mean(path.name, names)
            findings.append(finding(file, ("models", index, "source"), f"there is no file {model.source}{near}"))
    if findings:
        raise DocumentError(findings)


def _check(
    artifacts: Iterable[Artifact], path_of: Callable[[str], Path | None], recipe: Recipe | None, file: Path | None
) -> None:
    wanted: dict[str, dict[str, Format]] = {}
    for artifact in artifacts:
        size = recipe.split_of(artifact.format) if recipe else None
        item = FORMATS[artifact.format]
        wanted.setdefault(artifact.model, {})[item.name] = replace(item, split=Split(size)) if size else item
    models = {model.name: model for model in recipe.models} if recipe else {}
    problems: list[str] = []
    strange: list[str] = []
    for model, formats in wanted.items():
        eps = models[model].group_norm_eps if model in models else None
        ignore = models[model].ignore_tensors if model in models else ()
        tokenizer = models[model].tokenizer if model in models else "auto"
        try:
            needed = _of_librwkv(recipe, model, formats) if recipe else ()
            found = _problems(model, path_of(model), eps, ignore, tokenizer, needed, formats.values())
            problems += [_placed(text, name, recipe, file) for name, text in found]
        except UsageError as error:
            strange.append(error.message)
    if strange:
        raise UsageError("\n  ".join(strange))
    if problems:
        raise UsageError(
            "\n  ".join(problems),
            remedy="take the format out of the recipe, or the combination: matrix: {exclude: [{model: …, format: …}]}",
        )


def _of_librwkv(recipe: Recipe, model: str, formats: Iterable[str]) -> tuple[str, ...]:
    """What the recipe asks for a model that librwkv computes, by the keys."""
    asked = next((item.imatrix for item in recipe.models if item.name == model), None)
    entries = [recipe.entry_of(name) for name in formats]
    return (
        *(("imatrix",) if asked is not None else ()),
        *(("target",) if any(entry is not None and entry.target is not None for entry in entries) else ()),
        *(("smoke.quality: full",) if recipe.smoke.quality == "full" else ()),
    )


def _placed(text: str, name: str, recipe: Recipe | None, file: Path | None) -> str:
    """A message about a format, with the place where the recipe asks for it."""
    if recipe is None or file is None:
        return text
    return str(finding(file, place_of_format(recipe, name), text))


def _local(source: str, folder: Path) -> Path | None:
    return parse_source(source, folder=True).below(folder)


def _problems(
    model: str,
    path: Path | None,
    eps: float | None,
    ignore: tuple[str, ...],
    tokenizer: str,
    needed: tuple[str, ...],
    formats: Iterable[Format],
) -> list[tuple[str, str]]:
    """(format, why) of those that cannot hold the model at `path`; nothing where it cannot be known yet.

    Only names and shapes are read. Raises UsageError for a model that is none of the versions, whose tokenizer is
    another's, or that librwkv does not run, where what is `needed` of the recipe is computed by it.
    """
    asked = list(formats)
    if path is None:
        return []
    from rwkvflow.worker.errors import UnknownModelError, WorkerError
    from rwkvflow.worker.formats.runtimes import runs
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.origin import Origin
    from rwkvflow.worker.model.strangers import refuse_unknown
    from rwkvflow.worker.model.tokenizers import misfit_of_kind
    from rwkvflow.worker.model.variants import version_named
    from rwkvflow.worker.read.open import open_checkpoint

    try:
        with open_checkpoint(Origin(path, ignore=ignore)) as checkpoint:
            tensors = checkpoint.tensors
            architecture = architecture_of(tensors, eps)
            refuse_unknown(tensors, architecture)
    except UnknownModelError as error:
        raise UsageError(f"{model}: {error}") from error
    except (WorkerError, OSError):
        return []  # the stage that reads it says what is wrong with it
    if misfit := misfit_of_kind(tokenizer, architecture.n_vocab):
        raise UsageError(f"{model}: {misfit}")
    version = architecture.version
    if needed and not runs("librwkv", version):
        raise UsageError(
            f"{model} is {version_named(version)}, which librwkv does not run, and {' and '.join(needed)} of the "
            "recipe wants it to: leave that out"
        )
    problems: list[tuple[str, str]] = []
    if bad := [item.name for item in asked if version not in item.versions]:
        which, named = " and ".join(bad), version_named(version)
        text = f"{model} is {named}, which {which} cannot hold; these can: {able_to_hold(version)}"
        problems.append((bad[0], text))
    for item in asked:
        if item.name in bad:
            continue
        why = item.refuse(architecture)
        if why is None and item.split is not None and not item.splits:
            try:
                why = too_large(item, item.expected_size(architecture, item.held(architecture, tensors)))
            except WorkerError:
                continue  # as above
        if why is not None:
            problems.append((item.name, f"{model}: {why}"))
    return problems
