"""The one place that puts a run together: documents → lock → plan → executor."""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base.errors import LockError, PublishError, RwkvflowError, SmokeFailed, StepFailed, StoreError, UsageError
from rwkvflow.base.events import Event, Listener, Notice, RunFinished, RunStarted, silent
from rwkvflow.documents.load import load_lock, load_recipe, load_workflow
from rwkvflow.documents.lock import Lock, bases_of, disagreements, lock_path
from rwkvflow.documents.lock_text import dump_lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.lock.fit import check_versions
from rwkvflow.lock.local_files import changed_engine, changed_files
from rwkvflow.lock.outside import check_inside
from rwkvflow.lock.pins import brings, strangers
from rwkvflow.plan.matrix import expand, select
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Step
from rwkvflow.stages import convert, engine, extra, fetch, image, imatrix, llama, mixing, publish, quality, smoke
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.store.history import History
from rwkvflow.store.store import Store, run_id

if TYPE_CHECKING:
    from rwkvflow.execute.base import Outcome
    from rwkvflow.execute.cluster.elsewhere import Elsewhere
    from rwkvflow.sandbox.base import Sandbox
    from rwkvflow.store.leases import Leases
    from rwkvflow.store.trust import Trust


@dataclass(frozen=True)
class Request:
    """What the command line asks of a run."""

    recipe: Path
    workflow: Path | None = None
    sandbox: str = "auto"
    store: Path | None = None
    locked: bool = False
    only: tuple[str, ...] = ()
    publish: bool = True
    remote: str | None = None
    remote_read_only: bool = False
    trust: tuple[str, ...] = ()  # public keys whose records in the remote store count
    store_key: Path | None = None  # private key that signs what is sent to it
    allow_outside: bool = False
    wheels_engine: bool = True  # on the host, librwkv of the wheel is taken where it is what would be built


@dataclass(frozen=True)
class Prepared:
    """A run that could start."""

    request: Request
    blueprint: Blueprint
    plan: Plan
    store: Store
    sandbox: Sandbox
    why_sandbox: str


@dataclass(frozen=True)
class Finished:
    """How a run ended."""

    outcomes: Mapping[str, Outcome]
    seconds: float
    published: tuple[str, ...] = ()
    failures: tuple[str, ...] = field(default=())

    def check(self) -> None:
        """Raises the error that the command should end with, if any."""
        if (error := self.error()) is not None:
            raise error

    def error(self) -> RwkvflowError | None:
        """The error that the command should end with, or None when all went well."""
        failed = [(name, outcome) for name, outcome in self.outcomes.items() if outcome.status == "failed"]
        if not failed:
            return None
        summary = f"{len(failed)} step{'s' if len(failed) > 1 else ''} failed: " + ", ".join(name for name, _ in failed)
        if all(isinstance(outcome.error, SmokeFailed) for _, outcome in failed):
            return SmokeFailed(summary)
        if all(isinstance(outcome.error, PublishError) for _, outcome in failed):
            return PublishError(summary)
        errors = [outcome.error for _, outcome in failed if outcome.error is not None]
        if any(isinstance(error, StoreError) for error in errors):  # a full disk makes other steps fail by the way
            return StoreError(summary)
        # A release that could not be made for what failed before it is no failure of its own.
        kinds = {type(error) for error in errors if not isinstance(error, PublishError)}
        if len(kinds) == 1 and (kind := kinds.pop()) is not RwkvflowError:
            return kind(summary)
        return StepFailed(summary)


def make_plan(blueprint: Blueprint, *, publishing: bool = True) -> Plan:
    """The DAG of a run. Pure: touches no network and no Docker."""
    steps: list[Step] = [
        *fetch.steps(blueprint),
        *([llama.step(blueprint)] if llama.wanted(blueprint) else []),
        *image.steps(blueprint),
        *engine.steps(blueprint),
        *imatrix.steps(blueprint),
        *mixing.steps(blueprint),
        *convert.steps(blueprint),
        *smoke.steps(blueprint),
        *quality.steps(blueprint),
        *extra.steps(blueprint),
        *(publish.steps(blueprint) if publishing else ()),
    ]
    final = {"smoke", "quality", "extra", "publish"}
    if not any(step.stage == "publish" for step in steps):
        final.add("convert")  # without a place to publish to, the artifacts themselves are what is wanted
    return Plan(steps, [step.id for step in steps if step.stage in final])


def open_store(request: Request, emit: Listener = silent, workflow: Workflow | None = None) -> Store:
    """The store of a run, with the remote one below it where the request names one."""
    from rwkvflow.store.store import default_root

    store = Store(request.store or default_root())
    if request.remote:
        from rwkvflow.store.keys import load_signer
        from rwkvflow.store.remote import Remote

        def told(text: str) -> None:
            emit(Notice(text, "warning"))

        store.remote = Remote(
            request.remote,
            told,
            write=not request.remote_read_only,
            trust=_trust(request, store, workflow or load_workflow(request.workflow)),
            signer=load_signer(request.store_key) if request.store_key else None,
        )
        if not store.remote.trust and store.first_time(f"{store.remote.id}.told"):
            told(
                f"remote store {store.remote.shown}: whoever may write to it decides what its steps made; "
                "`rwkvflow cache trust` lets only those count who have a key"
            )
    elif request.trust:
        raise UsageError("--trust is about the records of a remote store", remedy="name it with --remote")
    return store


def documents(request: Request) -> tuple[Recipe, Workflow]:
    """Recipe and workflow of a request. Raises UsageError where the recipe reaches outside of its folder unasked."""
    recipe, workflow = load_recipe(request.recipe), load_workflow(request.workflow)
    if not (request.allow_outside or workflow.allow_outside):
        check_inside(recipe, request.recipe.absolute().parent)
    return recipe, workflow


def _trust(request: Request, store: Store, workflow: Workflow) -> Trust:
    from rwkvflow.store.keys import parse_public
    from rwkvflow.store.trust import Trust, TrustedKey, date, kept_keys

    return Trust(
        [
            *(TrustedKey(key.key, key.name, date(key.before) if key.before else "") for key in workflow.trust),
            *(TrustedKey(parse_public(text)) for text in request.trust),
            *kept_keys(store.root),
        ]
    )


def prepare(request: Request, emit: Listener) -> Prepared:
    """Read and check the documents, choose the sandbox, make or check the lock, and plan."""
    from rwkvflow.sandbox.choose import brings_code, check_kept_in, choose

    recipe, workflow = documents(request)
    store = open_store(request, emit, workflow)
    sandbox, why = choose(
        request.sandbox, store.root, bases_of(recipe, _locked(request)), brings_code(recipe, workflow)
    )
    lock = ensure_lock(request, recipe, store, sandbox, emit)
    check_kept_in(sandbox, request.sandbox, why, brings(lock))
    artifacts = tuple(expand(recipe))
    if request.only:
        artifacts = tuple(select(artifacts, request.only))
    check_versions(artifacts, lock, request.recipe.absolute().parent, store, recipe, request.recipe)
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=request.recipe.absolute(),
        workflow=workflow,
        workflow_path=(request.workflow or request.recipe).absolute(),
        lock=lock,
        sandbox=sandbox.name,
        platform=sandbox.platform,
        artifacts=artifacts,
    )
    plan = make_plan(blueprint, publishing=request.publish and not request.only)
    return Prepared(request, blueprint, plan, store, sandbox, why)


def _locked(request: Request) -> Lock | None:
    path = lock_path(request.recipe)
    return load_lock(path) if path.exists() else None


def ensure_lock(request: Request, recipe: Recipe, store: Store, sandbox: Sandbox, emit: Listener) -> Lock:
    """The lock beside the recipe; made or completed where it is absent or no longer fits, unless `--locked`."""
    path = lock_path(request.recipe)
    lock = _locked(request)
    problems = ["there is none"] if lock is None else lacks(recipe, lock, sandbox)
    if lock is not None:
        problems += changed_files(lock, request.recipe.absolute().parent, store, emit)
        problems += changed_engine(recipe, lock, request.recipe.absolute().parent)
    if lock is not None and not problems:
        return lock
    if request.locked:
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise LockError(
            f"{path.name} does not fit {request.recipe.name}:{reasons}",
            remedy="run `rwkvflow lock`, review the change, commit it",
        )
    why = "there is none" if lock is None else "; ".join(problems[:3])
    emit(Notice(f"making {path.name}: {why}"))
    return make_lock(request, recipe, store, sandbox, lock, emit)


def lacks(recipe: Recipe, lock: Lock, sandbox: Sandbox) -> list[str]:
    """What keeps a lock from being used for this recipe in this sandbox, in words."""
    problems = [*disagreements(recipe, lock), *strangers(lock)]
    for name, locked in sorted(lock.images.items()):
        if sandbox.name == "docker" and locked.base is None:
            problems.append(f"images.{name}: no base image is pinned")
        if sandbox.platform not in locked.platforms:
            problems.append(f"images.{name}: no wheels for {sandbox.platform}")
    return problems


def make_lock(
    request: Request, recipe: Recipe, store: Store, sandbox: Sandbox, previous: Lock | None, emit: Listener
) -> Lock:
    """Resolve everything and write the lock beside the recipe."""
    from rwkvflow.lock.resolve import resolve
    from rwkvflow.sandbox.image.base_choice import Bases
    from rwkvflow.sandbox.image.base_names import refuse_other_python

    if sandbox.name == "docker":
        refuse_other_python(recipe, request.recipe)
    bases = Bases(store.root, recipe, request.recipe, emit)
    lock = resolve(
        recipe,
        request.recipe.absolute(),
        platforms=[sandbox.platform],
        base_of=bases if sandbox.name == "docker" else lambda reference, python: None,
        previous=previous,
        store=store,
        emit=emit,
    )
    dump_lock(lock, lock_path(request.recipe))
    return lock


def execute(
    prepared: Prepared,
    emit: Listener,
    cancel: threading.Event | None = None,
    *,
    stages: frozenset[str] | None = None,
    leases: Leases | None = None,
    elsewhere: Elsewhere | None = None,
) -> Finished:
    """Carry the plan out. Raises Interrupted; failures of steps are in what it returns.

    stages: steps of others are not carried out; they fail where they are not in the store.
    leases: carry out only what no other worker has claimed, and see to the rest's being done.
    elsewhere: the cluster that carries out commands; see app.clusters.
    """
    with History(prepared.store, run_id(prepared.request.recipe)) as history:

        def tell(event: Event) -> None:
            history(event)
            emit(event)

        return _execute(prepared, tell, cancel, stages, leases, elsewhere)


def _execute(
    prepared: Prepared,
    emit: Listener,
    cancel: threading.Event | None,
    stages: frozenset[str] | None,
    leases: Leases | None,
    elsewhere: Elsewhere | None = None,
) -> Finished:
    from rwkvflow.execute.actions import actions, only_in, probes
    from rwkvflow.execute.local import LocalExecutor
    from rwkvflow.publish.places import refuse_missing_packages

    if any(step.stage == "publish" for step in prepared.plan):
        refuse_missing_packages(prepared.blueprint.recipe)
    start = time.monotonic()
    store, plan = prepared.store, prepared.plan
    emit(RunStarted(str(prepared.request.recipe), prepared.sandbox.name, prepared.why_sandbox, len(plan)))
    executor = LocalExecutor(
        store,
        only_in(stages, actions(store, prepared.sandbox, wheels_engine=_takes_the_wheels(prepared))),
        probes(store, prepared.sandbox),
        emit,
        run=run_id(prepared.request.recipe),
        cores=os.cpu_count() or 1,
        cancel=cancel,
        leases=leases,
        elsewhere=elsewhere,
    )
    with store.using():
        outcomes = executor.run(plan)
    finished = _finish(outcomes, time.monotonic() - start)
    count = {status: sum(o.status == status for o in outcomes.values()) for status in ("done", "cached", "failed")}
    skipped = sum(outcome.status in ("skipped", "cancelled") for outcome in outcomes.values())
    emit(RunFinished(count["done"], count["cached"], count["failed"], skipped, finished.seconds, finished.published))
    return finished


def _takes_the_wheels(prepared: Prepared) -> bool:
    return prepared.request.wheels_engine and prepared.sandbox.name == "host"


def _finish(outcomes: Mapping[str, Outcome], seconds: float) -> Finished:
    published = tuple(outcome.notes["to"] for name, outcome in outcomes.items() if outcome.ok and "to" in outcome.notes)
    return Finished(outcomes, seconds, published, tuple(_failed(outcomes)))


def _failed(outcomes: Mapping[str, Outcome]) -> Iterable[str]:
    return (name for name, outcome in outcomes.items() if outcome.status == "failed")


def relock(request: Request, emit: Listener, *, fresh: bool = False) -> list[str]:
    """Resolve and write the lock; what changed, as a diff. Entries that still agree are kept unless `fresh`."""
    from rwkvflow.sandbox.choose import choose

    recipe, _ = documents(request)
    store = open_store(request, emit)
    previous = None if fresh else _locked(request)
    sandbox, _ = choose(request.sandbox, store.root, bases_of(recipe, previous))
    path = lock_path(request.recipe)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    make_lock(request, recipe, store, sandbox, previous, emit)
    after = path.read_text(encoding="utf-8").splitlines()
    return list(difflib.unified_diff(before, after, "before", "after", lineterm="", n=1))


def only_stages(prepared: Prepared, stages: Sequence[str]) -> Prepared:
    """The same run, ended after these stages."""
    steps = list(prepared.plan)
    return replace(prepared, plan=Plan(steps, [step.id for step in steps if step.stage in stages]))


def publish_only(prepared: Prepared) -> Prepared:
    """The same run, ended after publishing, where every artifact of the release must have passed its smoke test."""
    steps = [replace(step, tolerant=False) if step.stage == "publish" else step for step in prepared.plan]
    return replace(prepared, plan=Plan(steps, [step.id for step in steps if step.stage == "publish"]))


def where(prepared: Prepared, finished: Finished) -> list[str]:
    """Where the outputs of the targets are in the store, one per line."""
    lines = []
    for target in prepared.plan.targets:
        for name, output in finished.outcomes[target].outputs.items():
            lines.append(f"{target} {name}: {prepared.store.path(output.digest)}")
    return lines


def librwkv_folder(prepared: Prepared, finished: Finished) -> Path:
    """The folder of librwkv in the store: that of the recipe's first image, for this machine."""
    ref = engine.builtin(next(iter(prepared.blueprint.images)))
    folder = prepared.store.path(finished.outcomes[ref.step].outputs[ref.output].digest)
    if folder is None:
        raise StoreError("the engine was built but is missing from the store", remedy="run the command again")
    return folder


def environments(sandbox: str, root: Path | None, *, remove: bool = False) -> list[tuple[str, str]]:
    """Each environment of a sandbox, and the step that refers to it ("" for none); `remove` drops the others."""
    from rwkvflow.sandbox.choose import choose
    from rwkvflow.store.store import default_root

    store = Store(root or default_root())
    chosen, _ = choose(sandbox, store.root)
    records = [(tag, store.lookup(tag)) for tag in chosen.tags()]
    rows = [(tag, record.step if record else "") for tag, record in records]
    if remove:
        with store.exclusive():
            for tag, used in rows:
                if not used:
                    chosen.remove(tag)
    return rows
