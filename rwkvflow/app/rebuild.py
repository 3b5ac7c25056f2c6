"""Makes a release again from its own recipe and lock, in a store of its own, and compares what comes out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvflow.app import pipeline
from rwkvflow.base.errors import EnvironmentMissing, LockError, PublishError, UsageError
from rwkvflow.base.events import Listener
from rwkvflow.base.files import remove
from rwkvflow.documents.load import load_lock, load_workflow, recipe_from_text
from rwkvflow.documents.lock import Lock, pinned_files
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.local_files import changed_files
from rwkvflow.lock.outside import check_inside
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Input, Ref
from rwkvflow.release.artifacts import gather
from rwkvflow.release.names import ENGINE, LOCK, PROVENANCE, RECIPE
from rwkvflow.release.provenance.materials import engines
from rwkvflow.release.provenance.statement import read_statement
from rwkvflow.stages import engine
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.stages.publish import release_of
from rwkvflow.store.store import Store, default_root


@dataclass
class Comparison:
    """Files of a release by how they compare with those made again. A note is a difference that is no failure."""

    sandbox: str = ""  # in which it was made again
    same: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rebuild(
    release: Path,
    emit: Listener,
    *,
    recipe: Path | None = None,
    workflow: Path | None = None,
    sandbox: str = "auto",
    allow_outside: bool = False,
    store: Path | None = None,
) -> Comparison:
    """Run the recipe of a release anew and compare every artifact and engine file, bit by bit.

    `recipe` is where the release's recipe lies beside its local files; without it they are looked for in the release.
    What is made comes from the release's own recipe and lock in any case. `allow_outside`: the recipe may name files
    outside of its folder. Nothing runs on the host unless `sandbox` says so. From `store` is taken what was downloaded
    before, and nothing else. The sandbox may be another than the one that the release was made in; where the lock pins
    no base image for it, the one that the recipe names is taken, and a note says which that was. Errors as those of a
    run.
    """
    for name in (RECIPE, LOCK, PROVENANCE):
        if not (release / name).is_file():
            raise UsageError(f"{release}: without {name}, this release cannot be made again")
    statement = read_statement((release / PROVENANCE).read_bytes())
    with _fresh_store() as root:
        prepared, bases = _prepare(release, recipe, workflow, sandbox, allow_outside, root, emit)
        _seed(root, prepared.blueprint.lock, store)
        finished = pipeline.execute(prepared, emit)
        params, refs = release_of(prepared.blueprint)
        inputs, digests = _made(prepared, finished, refs)
        try:
            found = _compare(statement, params, inputs, digests)
        except PublishError as error:  # nothing was made at all; why is the run's to say
            raise finished.error() or error from None
    found.sandbox = prepared.sandbox.name
    found.notes += bases
    return found


def _prepare(
    release: Path,
    beside: Path | None,
    workflow: Path | None,
    sandbox: str,
    allow_outside: bool,
    root: Path,
    emit: Listener,
) -> tuple[pipeline.Prepared, list[str]]:
    from rwkvflow.sandbox.choose import brings_code, choose

    place = (beside or release / RECIPE).absolute()
    recipe = recipe_from_text((release / RECIPE).read_bytes().decode(), str(release / RECIPE), place.parent)
    lock = load_lock(release / LOCK)
    stages = load_workflow(workflow)
    if not (allow_outside or stages.allow_outside):
        check_inside(recipe, place.parent)
    chosen, why = choose(sandbox, root, (), brings_code(recipe, stages))
    if chosen.name == "host" and sandbox != "host":
        raise EnvironmentMissing(
            f"a release may be anybody's, and making it again would run its wheels and engine on this machine: {why}",
            remedy="make Docker work (`rwkvflow doctor`), or say --sandbox host if you know who made it",
        )
    lock, bases = _with_bases(recipe, lock, emit) if chosen.name == "docker" else (lock, [])
    if problems := pipeline.lacks(recipe, lock, chosen):
        raise LockError(
            f"the lock of {release} does not do here:" + "".join(f"\n  {problem}" for problem in problems),
            remedy="rebuild on the platform that it was made on",
        )
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=place,
        workflow=stages,
        workflow_path=(workflow or place).absolute(),
        lock=lock,
        sandbox=chosen.name,
        platform=chosen.platform,
        artifacts=tuple(expand(recipe)),
    )
    request = pipeline.Request(
        place, workflow=workflow, sandbox=sandbox, store=root, locked=True, publish=False, wheels_engine=False
    )
    if problems := changed_files(lock, place.parent, pipeline.open_store(request), emit):
        raise UsageError(
            "files that the release was made from are not here:" + "".join(f"\n  {problem}" for problem in problems),
            remedy="say with --recipe where its recipe lies beside them",
        )
    plan = pipeline.make_plan(blueprint, publishing=False)
    crossed = [engine.cross(blueprint, target).step for target in blueprint.recipe.engine.targets]
    plan = Plan(list(plan), [*plan.targets, *crossed])
    return pipeline.Prepared(request, blueprint, plan, pipeline.open_store(request), chosen, why), bases


def _with_bases(recipe: Recipe, lock: Lock, emit: Listener) -> tuple[Lock, list[str]]:
    """The lock with base images where it pins none, as one that was made on the host; and which those are."""
    from rwkvflow.sandbox.image.base_choice import Bases

    bases = Bases(default_root(), emit=emit)
    notes, images = [], dict(lock.images)
    for image in recipe.images:
        known = images.get(image.name)
        if known is not None and known.base is None:
            base = bases(image.base, image.python)
            images[image.name] = known.model_copy(update={"base": base})
            notes.append(f"the lock pins no base image for {image.name}: {base.reference} was taken, {base.digest}")
    return lock.model_copy(update={"images": images}), notes


@contextmanager
def _fresh_store() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="rwkvflow-rebuild-"))
    try:
        yield root / "store"
    finally:
        remove(root)


def _seed(root: Path, lock: Lock, named: Path | None) -> None:
    """Give the fresh store what was downloaded before, and nothing that was made. A fetch hashes what it finds."""
    usual = named or default_root()
    if not usual.is_dir():
        return
    store, downloads = Store(usual), root / "downloads"
    for _, _, file in pinned_files(lock):
        if (known := store.path(f"sha256:{file.sha256}")) is not None:
            _copy(known, downloads / file.sha256)
    for image in lock.images.values():
        for wheels in image.platforms.values():
            for wheel in (*wheels.worker, *wheels.toolchain):
                _copy(usual / "downloads" / "wheels" / wheel.filename, downloads / "wheels" / wheel.filename)


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _made(
    prepared: pipeline.Prepared, finished: pipeline.Finished, refs: Mapping[str, Input]
) -> tuple[dict[str, Path], dict[str, str]]:
    inputs: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for name, ref in refs.items():
        outcome = finished.outcomes.get(ref.step) if isinstance(ref, Ref) else None
        if outcome is None or not outcome.ok or not isinstance(ref, Ref):
            continue
        digest = outcome.outputs[ref.output].digest
        path = prepared.store.path(digest)
        if path is not None:
            inputs[name], digests[name] = path, digest
    return inputs, digests


def _compare(
    statement: Mapping[str, Any], params: Mapping[str, Any], inputs: Mapping[str, Path], digests: Mapping[str, str]
) -> Comparison:
    found = Comparison()
    gathered = gather(params, inputs, digests)
    made = {file.path: file.digest.removeprefix("sha256:") for file in gathered.files}
    crossed = tuple(f"{ENGINE}/{target}/{part}/" for target in params.get("targets", ()) for part in ("lib", "bin"))
    why = {entry["file"]: gathered.left_out.get(entry["id"]) for entry in params["entries"]}
    for subject in statement["subject"]:
        path, sha256 = subject["name"], subject["digest"].get("sha256")
        if subject.get("annotations", {}).get("format") or path.startswith(crossed):
            reason = next((text for file, text in why.items() if text and f"{path}/".startswith(f"{file}/")), None)
            if path not in made:
                found.problems.append(f"{path} was not made again: {reason or 'the recipe does not make it'}")
            elif made[path] != sha256:
                found.problems.append(f"{path} differs: the release has {sha256}, made again it is {made[path]}")
            else:
                found.same.append(path)
        elif path in made and made[path] != sha256:
            found.notes.append(f"{path} differs")
    stated = {item["name"]: item["digest"]["sha256"] for item in _byproducts(statement)}
    for built in engines(params, inputs, {}):
        for path, sha256 in built.files.items():
            name = f"engine@{built.image}/{path}"
            if name not in stated:
                continue
            if stated[name] == sha256:
                found.same.append(name)
            elif path.startswith(("lib/", "bin/")):
                found.problems.append(f"{name} differs: the release's was {stated[name]}, made again it is {sha256}")
            else:
                found.notes.append(f"{name} differs")
    return found


def _byproducts(statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = statement["predicate"]["runDetails"].get("byproducts", [])
    return [item for item in found if item.get("name") and item.get("digest", {}).get("sha256")]
