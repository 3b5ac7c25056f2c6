"""Smoke in two commands: one runs the artifacts and has no reference, the other judges and runs nothing of a recipe's.

The first gets the questions, the artifacts, and what their consumers compare them with. What it answers is taken over
like any output. The second gets the reference and the answers, and its report is the step's output. Where wheels come
that are not rwkvflow's, the first runs in an environment of its own, and they are in no other. With an engine of
the recipe's own, each artifact that it runs has a command to itself, without the checkpoint and the other artifacts:
from either it could tell what a better file would have answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvflow.base.errors import RwkvflowError, StepFailed
from rwkvflow.execute.base import Action, Job, Made, Work

JUDGED = ("reference", "tokenizer", "environment")
KNOWN_TO_JUDGE = (*JUDGED, "librwkv")
HIDDEN = (*JUDGED, "librwkv", "consumers")
ORIGIN = ("checkpoint", "lora", "state")


def in_two(run: Action, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
    """The steps of one smoke batch; `run` carries out a command."""
    answers: dict[str, Made | RwkvflowError] = {}
    for number, group in enumerate(_groups(jobs)):
        folder = work.folder / f"ask{number}"
        folder.mkdir()
        answers |= run([_asking(job) for job in group], replace(work, folder=folder))
    results: dict[str, Made | RwkvflowError] = {}
    judging = []
    for job in jobs:
        made = answers.get(job.step.id, StepFailed("it ended without a result"))
        if isinstance(made, Made):
            judging.append((job, made))
        else:
            results[job.step.id] = made
    if judging and not work.cancel.is_set():
        folder = work.folder / "judge"
        folder.mkdir()
        results |= run(_judging(judging), replace(work, folder=folder))
    return {job.step.id: results.get(job.step.id, StepFailed("stopped")) for job in jobs}


def is_smoke(jobs: Sequence[Job]) -> bool:
    """Whether these steps are a smoke batch of rwkvflow's own."""
    return jobs[0].step.params.get("task") == "smoke"


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Which artifacts are run by one command."""
    alone = [job for job in jobs if _is_alone(job)]
    together = [job for job in jobs if not _is_alone(job)]
    return [*([together] if together else []), *([job] for job in alone)]


def _is_alone(job: Job) -> bool:
    return bool(job.step.local.get("apart")) and not job.step.local.get("compares")


def _asking(job: Job) -> Job:
    hidden = {*HIDDEN, *_below(("types",), job), *(_below(ORIGIN, job) if _is_alone(job) else ())}
    if job.step.local.get("apart") and not _is_alone(job):
        hidden.add("engine")
    params = {**job.step.params, "task": "ask"}
    step = replace(job.step, params=params, outputs=("answers",))
    inputs = {name: path for name, path in job.inputs.items() if name not in hidden}
    return replace(job, step=step, environment=job.consumers or job.environment, inputs=inputs)


def _judging(pairs: Sequence[tuple[Job, Made]]) -> list[Job]:
    """One command for all, which has the answers of each."""
    told = {f"answers-{job.step.params['job']['format']}": made.outputs["answers"].path for job, made in pairs}
    found = []
    for job, _ in pairs:
        known = {*KNOWN_TO_JUDGE, *_below(ORIGIN, job), *_below(("tokenizer", "types"), job)}
        if job.step.local.get("equal"):  # what it may find to be the checkpoint, and reads for that
            known |= _below((job.step.params["job"]["input"],), job)
        inputs = {name: path for name, path in job.inputs.items() if name in known}
        digests = dict(job.digests)
        inputs["engine"], digests["engine"] = inputs.pop("librwkv"), digests["librwkv"]
        found.append(replace(job, inputs={**inputs, **told}, digests=digests))
    return found


def _below(names: Sequence[str], job: Job) -> set[str]:
    """Inputs of these names, and the files of folders of these names, which are inputs of their own."""
    return {name for name in job.inputs if name.split("/")[0] in names}
