"""Who carries out a Step, by the name of its action. Each action takes the jobs of one command and a scratch folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import FetchError, RwkvflowError, SmokeFailed, StepFailed
from rwkvflow.base.hashing import SKIPPED
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import LockedBase, LockedPackage, LockedWheel
from rwkvflow.execute.base import Action, Job, Made, Probe, Product, Work
from rwkvflow.execute.publishing import publish_actions, publish_probes
from rwkvflow.lock.local_files import local_path
from rwkvflow.net.download import fetch_file, fetch_git
from rwkvflow.net.source_package import fetch_package
from rwkvflow.net.wheels import download_wheels
from rwkvflow.plan.step import Limits, Step, canonical
from rwkvflow.sandbox.base import Command, EnvironmentSpec, Result, Sandbox
from rwkvflow.sandbox.dockerfile import pinned_reference
from rwkvflow.store.store import Output, Store
from rwkvflow.worker import protocol

Results = Mapping[str, "Made | RwkvflowError"]


def actions(store: Store, sandbox: Sandbox) -> dict[str, Action]:
    """All actions of the default executor."""
    runner = _Commands(sandbox)
    environments = _Environments(sandbox)
    return {
        "fetch": lambda jobs, work: {job.step.id: _fetch(store, job, work) for job in jobs},
        "git": lambda jobs, work: {job.step.id: _git(job, work) for job in jobs},
        "source-package": lambda jobs, work: {job.step.id: _source_package(sandbox, job, work) for job in jobs},
        "wheels": lambda jobs, work: {job.step.id: _wheels(store, job, work) for job in jobs},
        "environment": environments,
        "sandbox": runner,
        **publish_actions(store),
    }


def only_in(stages: frozenset[str] | None, made_by: Mapping[str, Action]) -> dict[str, Action]:
    """The same actions, which refuse steps of other stages; None: of none."""

    def guarded(action: Action) -> Action:
        def run(jobs: Sequence[Job], work: Work) -> Results:
            if stages is None or jobs[0].step.stage in stages:
                return action(jobs, work)
            return {job.step.id: StepFailed("it is not in the store, and is not to be made now") for job in jobs}

        return run

    return {name: guarded(action) for name, action in made_by.items()}


def probes(store: Store, sandbox: Sandbox) -> dict[str, Probe]:
    """What tells whether a step's effect outside the store is still there."""

    def environment(step: Step, key: str, outputs: Mapping[str, Output]) -> bool:
        return sandbox.has(key)

    return {"environment": environment, **publish_probes(store)}


# ---- fetch -----------------------------------------------------------------------------------------------------


def _fetch(store: Store, job: Job, work: Work) -> Made:
    digest = f"sha256:{job.step.params['sha256']}"
    size = int(job.step.params["size"])
    local = job.step.local
    known = store.path(digest)
    if known is not None and known.stat().st_size == size:
        return Made({"file": Product(known, digest, external=True)})
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        job.progress(min(done, size), size, "B", "")

    folder = Path(local["folder"])
    mine = local_path(str(local["resolved"]), folder)
    target = mine or store.root / "downloads" / job.step.params["sha256"]
    try:
        fetch_file(
            str(local["resolved"]),
            target,
            sha256=job.step.params["sha256"],
            size=size,
            recipe_folder=folder,
            on_bytes=on_bytes,
            cancel=work.cancel,
        )
    except FetchError as error:
        if mine is not None and "sha256" in error.message:
            error.remedy = error.remedy or "if the change is meant, run `rwkvflow lock`"
        raise
    return Made({"file": Product(target, digest, external=mine is not None)})


def _git(job: Job, work: Work) -> Made:
    target = work.folder / "source"
    fetch_git(
        str(job.step.local["url"]),
        str(job.step.params["commit"]),
        target,
        submodules=bool(job.step.params["submodules"]),
        cwd=Path(job.step.local["folder"]),
        on_line=job.log,
        cancel=work.cancel,
    )
    return Made({"folder": Product(target)})


def _source_package(sandbox: Sandbox, job: Job, work: Work) -> Made:
    """A project of ours with a package's sources in it."""
    params = job.step.params
    target = work.folder / "project"
    shutil.copytree(job.inputs["project"], target, ignore=shutil.ignore_patterns(*SKIPPED))
    fetch_package(
        LockedPackage.model_validate({name: params[name] for name in LockedPackage.model_fields}),
        target / params["into"],
        root=params["root"],
        kept=params["kept"],
        scratch=work.folder,
        platform=sandbox.platform,
        on_line=job.log,
        cancel=work.cancel,
    )
    return Made({"folder": Product(target)})


def _wheels(store: Store, job: Job, work: Work) -> Made:
    wheels = [LockedWheel.model_validate(wheel) for wheel in job.step.local["wheels"]]
    cache = store.root / "downloads" / "wheels"  # wheels are shared between images: torch is large
    with store.working_on("wheels"):
        cache.mkdir(exist_ok=True)
        download_wheels(
            wheels,
            python=str(job.step.params["python"]),
            platform=str(job.step.params["platform"]),
            destination=cache,
            on_line=job.log,
            cancel=work.cancel,
        )
    target = work.folder / "wheels"
    target.mkdir()
    for wheel in wheels:
        (target / wheel.filename).hardlink_to(cache / wheel.filename)
    return Made({"wheels": Product(target)})


# ---- environments ----------------------------------------------------------------------------------------------


class _Environments:
    """Builds images or virtual environments; what is kept of one is what it was made of."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def __call__(self, jobs: Sequence[Job], work: Work) -> Results:
        return {job.step.id: self._build(job, work) for job in jobs}

    def _build(self, job: Job, work: Work) -> Made:
        step = job.step
        spec = environment_spec(step, job.key, job.inputs, work.folder, job.digests)
        if not self.sandbox.has(job.key):
            self.sandbox.build(spec, work.limits, job.log, work.cancel)
        target = work.folder / "environment.json"
        target.write_bytes(canonical(step.params["identity"]) + b"\n")
        return Made({"environment": Product(target)})


def environment_spec(
    step: Step, key: str, inputs: Mapping[str, Path], folder: Path, digests: Mapping[str, str]
) -> EnvironmentSpec:
    """What an image step asks of the sandbox. Engine requests are written below `folder`."""
    requests = folder / "requests"
    requests.mkdir()
    context = {"code/rwkvflow/worker": PACKAGE / "worker", "code/rwkvflow/engine": PACKAGE / "engine"}
    for name, params in step.params["engines"].items():
        source = inputs["builtin-engine" if name == "librwkv" else name if name in inputs else "engine"]
        context[f"engines/{name}"] = source
        jobs = [{"id": name, "params": {}, "outputs": {"engine": "out/engine"}}]
        request = {"task": "build-engine", "params": {"name": name, **params}, "jobs": jobs}
        (requests / f"{name}.json").write_bytes(canonical(request))
    context["requests"] = requests
    base = step.local["base"]
    return EnvironmentSpec(
        tag=key,
        image=str(step.params["image"]),
        dockerfile=str(step.local["dockerfile"]),
        base=pinned_reference(LockedBase.model_validate(base)) if base else None,
        python=str(step.local["python"]),
        wheels=inputs["wheels"],
        requirements=step.local["requirements"],
        context=context,
        labels=step.local["labels"],
    )


# ---- commands in the sandbox -----------------------------------------------------------------------------------


class _Commands:
    """Runs the command that a batch of steps shares, and sorts out what became of each."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._swept = False

    def __call__(self, jobs: Sequence[Job], work: Work) -> Results:
        first = jobs[0].step
        if not self._swept:  # here and not at the start: a run that has nothing to do asks no daemon
            self._swept = True
            self.sandbox.sweep()
        is_worker = "task" in first.params
        (work.folder / "out").mkdir()
        places = {
            job.step.id: {name: f"out/{index}.{name}" if is_worker else f"out/{name}" for name in job.step.outputs}
            for index, job in enumerate(jobs)
        }
        inputs: dict[str, Path] = {}
        for job in jobs:
            for name, path in job.inputs.items():
                if inputs.setdefault(name, path) != path:
                    raise StepFailed(f"steps of one batch disagree on the input {name}")
        listener = _Listener(jobs)
        command = Command(first.command, inputs, _request(jobs, places) if is_worker else None)
        result = self.sandbox.run(
            jobs[0].environment or "", command, work.folder, work.limits, listener.on_line, work.cancel
        )
        return {job.step.id: self._judge(job, work, places[job.step.id], listener, result, is_worker) for job in jobs}

    def _judge(
        self,
        job: Job,
        work: Work,
        places: Mapping[str, str],
        listener: _Listener,
        result: Result,
        is_worker: bool,
    ) -> Made | RwkvflowError:
        name = job.step.id
        if name in listener.failed:
            return (SmokeFailed if job.step.stage == "smoke" else StepFailed)(listener.failed[name])
        hashes = listener.outputs.get(name, {})
        well = result.exit_code == 0 and not (result.out_of_memory or result.timed_out or result.cancelled)
        if not well and not (is_worker and set(hashes) == set(job.step.outputs)):
            return failure(job.step.stage, work.limits, result)
        products = {}
        for output, place in places.items():
            path = work.folder / place
            if not path.exists():
                return StepFailed(f"the command ended well but left no {place}")
            products[output] = Product(path, hashes.get(output) if is_worker else None)
        return Made(products, listener.notes.get(name, {}))


def _request(jobs: Sequence[Job], places: Mapping[str, Mapping[str, str]]) -> bytes:
    params = jobs[0].step.params
    request = {
        "task": params["task"],
        "params": params["params"],
        "jobs": [
            {"id": job.step.id, "params": job.step.params["job"], "outputs": dict(places[job.step.id])} for job in jobs
        ],
    }
    return json.dumps(request, sort_keys=True, ensure_ascii=False).encode()


class _Listener:
    """Reads the worker's marked lines; the rest is log."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.outputs: dict[str, dict[str, str | None]] = {}
        self.notes: dict[str, dict[str, str]] = {}
        self.failed: dict[str, str] = {}

    def on_line(self, line: str) -> None:
        message = protocol.parse(line)
        if message is None:
            self.jobs[0].log(line)
            for job in self.jobs[1:]:
                job.keep(line)
            return
        try:
            self._take(message)
        except (KeyError, TypeError, ValueError):
            self.jobs[0].log(line)

    def _take(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            told = message["progress"]
            self.jobs[0].progress(told["done"], told["total"], told.get("unit", ""), told.get("label", ""))
        elif "output" in message:
            told = message["output"]
            digest = f"sha256:{told['sha256']}" if told["sha256"] else None  # a folder is hashed by the store
            self.outputs.setdefault(told["job"], {})[told["name"]] = digest
        elif "note" in message:
            told = message["note"]
            self.notes.setdefault(told["job"], {})[told["key"]] = str(told["value"])
        elif "failed" in message:
            told = message["failed"]
            self.failed[told["job"]] = str(told["message"])


def failure(stage: str, limits: Limits, result: Result) -> StepFailed:
    """Why a command failed, and what to do about it."""
    if result.cancelled:
        return StepFailed("stopped")
    if result.out_of_memory:
        limit = f" of {limits.memory / 2**30:.2f} GiB" if limits.memory else ""
        return StepFailed(f"ran out of its memory limit{limit}", remedy=f"raise stages.{stage}.memory in workflow.yaml")
    if result.timed_out:
        return StepFailed(
            f"took longer than its time limit of {limits.time_s:g} s",
            remedy=f"raise stages.{stage}.time in workflow.yaml",
        )
    tail = "\n".join("    " + line for line in result.tail.splitlines()[-12:] if not line.startswith(protocol.MARK))
    return StepFailed(f"its command ended with exit code {result.exit_code}\n{tail}".rstrip())
