"""The documents of a run as the workers of a cluster get them: data, with the files that they name beside it."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from rwkvflow.app.pipeline import Prepared, make_plan
from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.hashing import text_digest, tree_digest
from rwkvflow.base.names import path_problem
from rwkvflow.base.shipped import PACKAGE, shipped
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.execute.cluster.fitness import AWAY
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import LocalInput, canonical
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.store.record import Output
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store


@cache
def code_digest() -> str:
    """What of rwkvflow runs in sandboxes, and the engine's sources."""
    return text_digest(canonical([tree_digest(PACKAGE / "worker"), tree_digest(PACKAGE / "engine")]))


def machine() -> str:
    """Tells this machine, as it runs now, from others."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{uuid.getnode():x}"


def bundle(prepared: Prepared) -> tuple[dict[str, Any], dict[Path, list[str]]]:
    """The documents of a run as JSON, and the files that they name, each with where it stands for the workers.

    Raises UsageError for a file outside of the recipe's folder and the workflow's.
    """
    blueprint = prepared.blueprint
    folders = {"recipe": blueprint.folder, "workflow": blueprint.workflow_path.parent}
    places: dict[Path, list[str]] = {}
    for step in prepared.plan:
        for value in step.inputs.values() if step.action in AWAY else ():
            if isinstance(value, LocalInput) and not _ours(value.path, blueprint):
                places[value.path] = _places(value.path, folders)
    documents = {
        "recipe": _dumped(blueprint.recipe),
        "workflow": _dumped(blueprint.workflow),
        "lock": _dumped(blueprint.lock),
        "sandbox": blueprint.sandbox,
        "platform": blueprint.platform,
        "artifacts": [asdict(artifact) for artifact in blueprint.artifacts],
    }
    return documents, places


def _dumped(document: Recipe | Workflow | Lock) -> dict[str, Any]:
    data: dict[str, Any] = document.model_dump(mode="json", by_alias=True)
    if type(document).model_validate(data) != document:
        raise RwkvflowError(f"a flaw of rwkvflow: a {type(document).__name__.lower()} cannot be sent to a cluster")
    return data


def _ours(path: Path, blueprint: Blueprint) -> bool:
    """Whether a worker has a file by itself, as it has rwkvflow and the formats that are installed beside it."""
    homes = [PACKAGE, shipped("workflow.yaml").parent / "images", *(item.folder for item in blueprint.format_packages)]
    return any(path.is_relative_to(home) for home in homes)


def _places(path: Path, folders: Mapping[str, Path]) -> list[str]:
    """Where a file stands, seen from the recipe, the workflow or both."""
    found = []
    for name, folder in folders.items():
        ways = [(real, root) for real in (path, path.resolve()) for root in (folder, folder.resolve())]
        below = [real.relative_to(root).as_posix() for real, root in ways if real.is_relative_to(root)]
        found += [f"{name}/{place}" for place in dict.fromkeys(below) if not path_problem(place)]
    if not found:
        raise UsageError(
            f"{path} is outside of the recipe's folder, and a cluster gets nothing from there",
            remedy="move it beside the recipe",
        )
    return found


def plan_of(documents: Mapping[str, Any], folder: Path) -> Plan:
    """The plan of a run's documents, on a worker; `folder` holds the files that they name."""
    recipe = Recipe.model_validate(documents["recipe"])
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=folder / "recipe" / "recipe.yaml",
        workflow=Workflow.model_validate(documents["workflow"]),
        workflow_path=folder / "workflow" / "workflow.yaml",
        lock=Lock.model_validate(documents["lock"]),
        sandbox=str(documents["sandbox"]),
        platform=str(documents["platform"]),
        artifacts=tuple(Artifact(**artifact) for artifact in documents["artifacts"]),
    )
    return make_plan(blueprint, publishing=False)


def stored(prepared: Prepared, store: Store, remote: Remote | None) -> list[Output]:
    """Put the documents and their files where the workers find them; the documents come first in what is returned."""
    documents, places = bundle(prepared)
    files, kept = [], []
    for path, seen in sorted(places.items()):
        output = _kept(path, store)
        _send(output, store, remote)
        kept.append(output)
        files += [{"place": place, "output": dict(vars(output))} for place in seen]
    with store.scratch() as folder:
        target = folder / "documents.json"
        target.write_bytes(canonical({**documents, "files": files}))
        output = store.put_file(target)
    _send(output, store, remote)
    return [output, *kept]


def _kept(path: Path, store: Store) -> Output:
    with store.scratch() as folder:
        target = folder / "copy"
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True)
            return store.put_tree(target)
        shutil.copyfile(path, target)
        return store.put_file(target)


def _send(output: Output, store: Store, remote: Remote | None) -> None:
    path = store.path(output.digest)
    if remote is not None and (path is None or not remote.put(output, path, store)):
        raise UsageError(
            f"the remote store {remote.shown} takes nothing from here, and bytes go to a cluster through it",
            remedy="see what it said above",
        )
