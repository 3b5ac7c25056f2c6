"""Who carries out a Step, by the name of its action. Each action takes the jobs of one command and a scratch folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rwkvflow.base.errors import FetchError, RwkvflowError, StepFailed
from rwkvflow.base.hashing import SKIPPED, file_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.lock import LockedBase, LockedPackage, LockedWheel
from rwkvflow.execute.base import Action, Job, Made, Probe, Product, Work
from rwkvflow.execute.commands import Commands
from rwkvflow.execute.engine_of_wheel import same_engine
from rwkvflow.execute.publishing import publish_actions, publish_probes
from rwkvflow.execute.smoke import in_two, is_smoke
from rwkvflow.execute.sources import check_unchanged
from rwkvflow.lock.local_files import local_path
from rwkvflow.net.download import fetch_file, fetch_git
from rwkvflow.net.packages.source_package import fetch_package
from rwkvflow.net.packages.wheels import download_wheels
from rwkvflow.plan.step import Step, canonical
from rwkvflow.sandbox.base import EnvironmentSpec, Sandbox
from rwkvflow.sandbox.image.dockerfile import pinned_reference
from rwkvflow.store.record import Output
from rwkvflow.store.store import Store
from rwkvflow.worker.formats.outside import FormatPackage

Results = Mapping[str, "Made | RwkvflowError"]


def actions(store: Store, sandbox: Sandbox, *, wheels_engine: bool = False) -> dict[str, Action]:
    """All actions of the default executor; `wheels_engine`: what rwkvflow's wheel brings is not built once more."""
    runner = Commands(sandbox, store)
    environments = _Environments(sandbox)

    def in_sandbox(jobs: Sequence[Job], work: Work) -> Results:
        if wheels_engine and len(jobs) == 1 and (files := same_engine(jobs[0].step)):
            return {jobs[0].step.id: _taken(files, jobs[0], work)}
        return in_two(runner, jobs, work) if is_smoke(jobs) else runner(jobs, work)

    return {
        "fetch": lambda jobs, work: {job.step.id: _fetch(store, job, work) for job in jobs},
        "git": lambda jobs, work: {job.step.id: _git(job, work) for job in jobs},
        "source-package": lambda jobs, work: {job.step.id: _source_package(job, work) for job in jobs},
        "wheels": lambda jobs, work: {job.step.id: _wheels(store, job, work) for job in jobs},
        "environment": environments,
        "sandbox": in_sandbox,
        **publish_actions(store),
    }


def only_in(stages: frozenset[str] | None, made_by: Mapping[str, Action]) -> dict[str, Action]:
    """These actions, but steps of other stages are refused; with None, none is refused."""

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
    # What lies under the digest is believed once it was hashed: another run, or a hand, may have put it there.
    if known is not None and known.stat().st_size == size and (store.adopted(known, digest) or _is(known, digest)):
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


def _is(path: Path, digest: str) -> bool:
    """Whether a file's bytes are those of a digest; one that cannot be read is not."""
    try:
        return file_digest(path) == digest
    except OSError:
        return False


def _git(job: Job, work: Work) -> Made:
    target = work.folder / "source"
    fetch_git(
        str(job.step.local["url"]),
        str(job.step.params["commit"]),
        target,
        submodules=job.step.params["submodules"],
        cwd=Path(job.step.local["folder"]),
        on_line=job.log,
        cancel=work.cancel,
    )
    return Made({"folder": Product(target)})


def _source_package(job: Job, work: Work) -> Made:
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


def _taken(files: Mapping[str, Path], job: Job, work: Work) -> Made:
    """The engine's files as a build leaves them."""
    job.log("engine: the wheel of rwkvflow has it, made of the same sources by the same compiler")
    target = work.folder / "engine"
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        (target / name).chmod(0o755 if "/" in name else 0o644)  # a library or a tool; or what is said of them
    return Made({"engine": Product(target)}, {"from": "the wheel of rwkvflow"})


# ---- environments ----------------------------------------------------------------------------------------------


_BUILD_STEP = re.compile(r"Step ([0-9]{1,4})/([0-9]{1,4}) : (.*)")


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
            self.sandbox.build(spec, work.limits, _with_steps(job), work.cancel)
            try:
                check_unchanged(step)
            except StepFailed:  # nobody can tell what of it went in
                self.sandbox.remove(job.key)
                raise
        target = work.folder / "environment.json"
        target.write_bytes(canonical(step.params["identity"]) + b"\n")
        return Made({"environment": Product(target)})


def _with_steps(job: Job) -> Callable[[str], None]:
    """The log of an image's build, which also tells how far it is: what the engine prints is shown, never believed."""

    def line(text: str) -> None:
        if found := _BUILD_STEP.match(text):
            job.progress(int(found[1]) - 1, int(found[2]), "", found[3])
        job.log(text)

    return line


def environment_spec(
    step: Step, key: str, inputs: Mapping[str, Path], folder: Path, digests: Mapping[str, str]
) -> EnvironmentSpec:
    """What an image step asks of the sandbox. Engine requests are written below `folder`."""
    requests = folder / "requests"
    requests.mkdir()
    context = {"code/rwkvflow/worker": PACKAGE / "worker", "code/rwkvflow/engine": PACKAGE / "engine"}
    context.update(_format_packages(step.local["formats"], folder))
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


def _format_packages(packages: Sequence[FormatPackage], folder: Path) -> dict[str, Path]:
    """The code of formats from outside, and metadata by which the registry finds it, written below `folder`."""
    found = {}
    for package in packages:
        found[f"code/{package.module}"] = package.folder
        info = folder / package.info
        info.mkdir()
        for name, text in package.metadata().items():
            (info / name).write_text(text, encoding="utf-8")
        found[f"code/{package.info}"] = info
    return found
