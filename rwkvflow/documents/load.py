"""Documents from files: everything that is wrong with one is said at once, with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rwkvflow.base.errors import DocumentError, Finding, LockError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.check.lock import check_lock
from rwkvflow.documents.check.recipe import check_recipe
from rwkvflow.documents.check.torch import check_torch
from rwkvflow.documents.check.workflow import check_workflow
from rwkvflow.documents.combine import combinations
from rwkvflow.documents.explain import explain
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.documents.yaml.source import DocumentSource, Path_, parse, read_text

M = TypeVar("M", bound=BaseModel)
Check = Callable[[DocumentSource], None]


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file. DocumentError with all findings; UsageError where the file cannot be read."""
    return recipe_from_text(read_text(path), str(path), path.parent)


def recipe_from_text(text: str, file: str, folder: Path) -> Recipe:
    """The recipe in a text that findings call `file`; its paths are relative to `folder`. Errors as load_recipe."""
    source = parse(text, file)
    data = source.to_python()
    if isinstance(data, dict) and "image" in data and "images" in data:
        source.add(("image",), "image and images are the same; keep one of them", at_key=True)
        del data["image"]
    recipe = _load(Recipe, source, data, lambda source: check_recipe(source, folder))
    if recipe.matrix.exclude and not combinations(recipe):
        raise DocumentError([source.finding(("matrix",), "the rules exclude everything", at_key=True)])
    if findings := check_torch(recipe, source):
        raise DocumentError(findings)
    return recipe


def finding(file: Path, place: Path_, message: str) -> Finding:
    """A finding in a document that was loaded before, about what only shows later."""
    return parse(read_text(file), str(file)).finding(place, message)


def load_workflow(path: Path | None = None) -> Workflow:
    """A workflow over the shipped one: a stage that it names replaces the shipped stage, extra stages are added.

    None gives the shipped workflow. Errors as load_recipe.
    """
    default = _workflow(shipped("workflow.yaml"))
    if path is None:
        return default
    own = _workflow(path)
    chosen = {name: getattr(own.stages, name) for name in own.stages.model_fields_set}
    return own.model_copy(
        update={
            "stages": default.stages.model_copy(update=chosen),
            "extra": (*default.extra, *own.extra),
            "allow_outside": own.allow_outside,
        }
    )


def named_stages(path: Path | None) -> frozenset[str]:
    """The stages that a workflow of the user's limits itself; what it adds of its own among them, as "extra"."""
    return frozenset() if path is None else frozenset({*_workflow(path).stages.model_fields_set, "extra"})


def _workflow(path: Path) -> Workflow:
    source = parse(read_text(path), str(path))
    return _load(Workflow, source, source.to_python(), lambda source: check_workflow(source, path.parent))


def load_lock(path: Path) -> Lock:
    """The lock in a file. LockError where there is none, DocumentError where it is damaged."""
    if not path.exists():
        raise LockError(f"{path}: there is no lock", remedy="`rwkvflow lock` makes it")
    return lock_from_text(read_text(path), str(path))


def lock_from_text(text: str, file: str) -> Lock:
    """The lock in a text; `file` is what findings call it. Errors as load_lock."""
    source = parse(text, file)
    return _load(Lock, source, source.to_python(), check_lock)


def load_document(path: Path) -> Literal["recipe", "workflow", "lock"]:
    """Check any document and tell which kind it is, by its keys. Errors as load_recipe."""
    text = read_text(path)
    root = parse(text, str(path)).to_python()
    keys = set(root) if isinstance(root, dict) else set()
    if {"recipe", "engine", "images"} <= keys or path.name.endswith(".lock.yaml"):
        lock_from_text(text, str(path))
        return "lock"
    if keys & {"stages", "extra"} and not keys & {"models", "formats"}:
        _workflow(path)
        return "workflow"
    recipe_from_text(text, str(path), path.parent)
    return "recipe"


def _load(model: type[M], source: DocumentSource, data: object, check: Check) -> M:
    findings = list(source.findings)
    source.findings = []
    document: M | None = None
    try:
        document = model.model_validate(data)
    except ValidationError as error:
        findings += explain(error, model, source)
    # What has the wrong type, or stands under a wrong key, is not worth a second remark.
    said = {finding.path for finding in findings}
    check(source)
    findings += [finding for finding in source.findings if finding.path not in said]
    if findings or document is None:
        raise DocumentError(list(dict.fromkeys(findings)))
    return document
