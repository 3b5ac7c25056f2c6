"""Workers on a cluster that share a recipe's steps through a remote store: an array for Slurm, a Job for Kubernetes.

All workers are alike: each claims steps in the store, so a lost one costs one step, and more of them can be added or
taken away. Documents are data here, as in `ci`: what is of a recipe gets to a command through variables, quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rwkvflow.base.errors import LockError, SmokeFailed, StepFailed, UsageError
from rwkvflow.plan.ci import dump
from rwkvflow.plan.step import StepLimits

MOST_WORKERS = 1000  # Slurm's MaxArraySize is 1001 unless its administrator says otherwise
_LABEL = re.compile(r"[^a-z0-9-]+")
_UID = "batch.kubernetes.io/controller-uid"  # the Job's own, so that a Job that is made anew tries again what failed
#: Exit codes after which the same worker would end in the same way; the workers themselves see to trying elsewhere.
_NOT_AGAIN = sorted({kind.exit_code for kind in (UsageError, LockError, StepFailed, SmokeFailed)})


@dataclass(frozen=True)
class ClusterSettings:
    """What a file needs to know. `recipe` is a path as the workers see it, memory in bytes."""

    name: str
    recipe: str
    workers: int
    sandbox: str = "host"
    image: str = ""
    memory: int | None = None
    cores: int | None = None
    workflow: str = ""  # its path; "": the shipped one


def needs(limits: Iterable[StepLimits]) -> tuple[int | None, int | None]:
    """(bytes of memory, whole cores) that a worker needs for every step with a limit; None where no step has one."""
    known = list(limits)
    memory = max((limit.memory for limit in known if limit.memory), default=None)
    cores = max((limit.cores for limit in known if limit.cores), default=None)
    return memory, None if cores is None else max(1, -int(-cores // 1))


def _checked(settings: ClusterSettings) -> None:
    if not 1 <= settings.workers <= MOST_WORKERS:
        raise UsageError(
            f"--workers: {settings.workers} is no number from 1 to {MOST_WORKERS}",
            remedy="one worker does one step after another; a few for each machine are enough",
        )
    for what, path in (("recipe", settings.recipe), ("workflow", settings.workflow)):
        if any(not character.isprintable() for character in path):
            raise UsageError(f"the {what}'s path cannot be used in a file: {path!a}")


def slurm(settings: ClusterSettings) -> str:
    """An sbatch script for an array of workers."""
    _checked(settings)
    label = _label(settings.name)
    asked = [f"--cpus-per-task={settings.cores}"] if settings.cores else []
    # Slurm's M is 2^20 bytes; rounded up, so that what a step may use fits.
    asked += [f"--mem={-(-settings.memory // 2**20)}M"] if settings.memory else []
    options = [
        f"--job-name=rwkvflow-{label}",
        f"--array=0-{settings.workers - 1}",
        "--requeue",
        "--open-mode=append",
        "--signal=TERM@60",
        *asked,
    ]
    head = [
        "Written by `rwkvflow matrix --format slurm`; write it again rather than edit it.",
        "Set RWKVFLOW_REMOTE to a store that all nodes reach: a folder that they share (file:///…), or a bucket.",
        "  job=$(sbatch --parsable --export=ALL workers.sbatch) &&",
        f"  sbatch --dependency=afterany:$job --wrap {shlex.quote(_publish(settings))}",
        "A worker that is lost costs the step that it was at; another takes it over. So whatever became of them,",
        "publish: it refuses where something is missing.",
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "#",
        *(f"# {line}" for line in head),
        "set -euo pipefail",
        ': "${RWKVFLOW_REMOTE:?set it to the URL of a store that all nodes can reach}"',
        f"RECIPE={shlex.quote(settings.recipe)}",
        *([f"WORKFLOW={shlex.quote(settings.workflow)}"] if settings.workflow else []),
        'export RWKVFLOW_ROUND="${SLURM_ARRAY_JOB_ID:-}"',
        f'exec rwkvflow work "$RECIPE" --locked --sandbox {settings.sandbox}'
        + (' --workflow "$WORKFLOW"' if settings.workflow else ""),
    ]
    return "".join(f"{line}\n" for line in lines)


def _publish(settings: ClusterSettings) -> str:
    more = f" --workflow {shlex.quote(settings.workflow)}" if settings.workflow else ""
    return f"rwkvflow publish {shlex.quote(settings.recipe)} --locked --sandbox {settings.sandbox}{more}"


def kubernetes(settings: ClusterSettings) -> str:
    """An Indexed Job of workers. The recipe and its lock come from a ConfigMap, the store's place from a Secret."""
    _checked(settings)
    if not settings.image:
        raise UsageError("--format kubernetes needs the image that has rwkvflow in it", remedy="name it with --image")
    name, file = f"rwkvflow-{_label(settings.name)}"[:52].rstrip("-"), settings.recipe.rpartition("/")[2]
    workflow = settings.workflow.rpartition("/")[2]
    resources: dict[str, Any] = {}
    if settings.memory:  # in whole MiB, rounded up: what a step may use has to fit
        resources["memory"] = f"{-(-settings.memory // 2**20)}Mi"
    if settings.cores:
        resources["cpu"] = str(settings.cores)
    container: dict[str, Any] = {
        "name": "worker",
        "image": settings.image,
        "command": ["rwkvflow", "work", f"/recipe/{file}", "--locked", "--sandbox", settings.sandbox]
        + (["--workflow", f"/recipe/{workflow}"] if workflow else []),
        "env": [
            {"name": "RWKVFLOW_STORE", "value": "/store"},
            {"name": "RWKVFLOW_ROUND", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{_UID}']"}}},
        ],
        "envFrom": [{"secretRef": {"name": name}}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "recipe", "mountPath": "/recipe", "readOnly": True},
            {"name": "store", "mountPath": "/store"},
        ],
    }
    if resources:
        limits = {key: value for key, value in resources.items() if key == "memory"}
        container["resources"] = {"requests": resources, **({"limits": limits} if limits else {})}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": settings.workers,
            "parallelism": settings.workers,
            "backoffLimitPerIndex": 3,
            "maxFailedIndexes": max(0, settings.workers - 1),
            "podReplacementPolicy": "Failed",  # else the next one starts beside one that is still ending
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailIndex",
                        "onExitCodes": {"containerName": "worker", "operator": "In", "values": _NOT_AGAIN},
                    }
                ]
            },
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "restartPolicy": "Never",
                    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
                    "containers": [container],
                    "volumes": [
                        {"name": "recipe", "configMap": {"name": name}},
                        {"name": "store", "emptyDir": {}},
                    ],
                },
            },
        },
    }
    head = [
        "Written by `rwkvflow matrix --format kubernetes`; write it again rather than edit it.",
        f"kubectl create configmap {name} --from-file={file} --from-file={_lock(file)}"
        + (f" --from-file={workflow}" if workflow else ""),
        f"kubectl create secret generic {name} --from-literal=RWKVFLOW_REMOTE=s3://bucket/folder",
        f"kubectl apply -f workers.yaml && kubectl wait --for=condition=complete --timeout=24h job/{name}",
        "(where a worker failed, the Job has the condition failed, though others may have done what it left)",
        f"and then, where the release is to go: {_publish(settings)}; it refuses where something is missing",
    ]
    return "".join(f"# {line}\n" for line in head) + dump(job)


def _lock(file: str) -> str:
    return re.sub(r"\.ya?ml$", "", file) + ".lock.yaml"


def _label(name: str) -> str:
    """A name as both systems take it."""
    return _LABEL.sub("-", name.lower()).strip("-")[:40].strip("-") or "recipe"
