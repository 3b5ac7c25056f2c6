"""CI from a recipe: the matrix of jobs, and workflows that run it. Documents are data here; YAML quotes them.

Nothing of a recipe is ever part of a command: it gets there through environment variables, in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml

from rwkvflow.base.errors import UsageError
from rwkvflow.plan.matrix import Artifact

By = Literal["artifact", "model", "format", "image"]
GITHUB_JOBS, GITLAB_JOBS = 256, 200  # what each allows in one matrix
SECRET = re.compile(r"[A-Z_][A-Z0-9_]{0,99}\Z")


@dataclass(frozen=True)
class CiJob:
    """One CI job. `only` is what it gives to `rwkvflow run --only`."""

    id: str
    only: str
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class CiSettings:
    """What a workflow needs to know. `recipe` is a path inside the repository; `package` what pip is to install."""

    name: str
    recipe: str
    package: str
    sandbox: str = "host"
    by: By = "artifact"
    secrets: tuple[str, ...] = ("HF_TOKEN",)
    schedule: str | None = None  # cron, in UTC: the lock is made anew then, and what changed upstream is converted


def jobs(artifacts: Sequence[Artifact], by: By = "artifact") -> list[CiJob]:
    """The artifacts in groups, in their own order. A job's glob picks its artifacts and no others."""
    groups: dict[str, list[str]] = {}
    for artifact in artifacts:
        groups.setdefault(artifact.id if by == "artifact" else getattr(artifact, by), []).append(artifact.id)
    globs = {"artifact": "{}", "model": "{}/*", "format": "*/{}@*", "image": "*@{}"}
    return [CiJob(name, globs[by].format(name), tuple(ids)) for name, ids in groups.items()]


def github_matrix(found: Sequence[CiJob]) -> dict[str, Any]:
    """For `strategy.matrix`. Raises UsageError where there are more jobs than GitHub allows."""
    if len(found) > GITHUB_JOBS:
        raise UsageError(
            f"{len(found)} jobs are more than the {GITHUB_JOBS} that GitHub allows in a matrix",
            remedy="group them with --by model, format or image",
        )
    return {"include": [{"id": job.id, "only": job.only} for job in found]}


def gitlab_jobs(found: Sequence[CiJob]) -> dict[str, Any]:
    """A child pipeline. Its variables come from the one that starts it."""
    parts = [found[start : start + GITLAB_JOBS] for start in range(0, len(found), GITLAB_JOBS)]
    return {
        "default": _gitlab_default(),
        **{
            "make" if len(parts) == 1 else f"make-{number}": {
                "stage": "build",
                "parallel": {"matrix": [{"ONLY": [job.only for job in part]}]},
                "script": [_MAKE],
            }
            for number, part in enumerate(parts, 1)
        },
    }


_REMOTE = ': "${RWKVFLOW_REMOTE:?set it to the URL of a store that all jobs can reach, such as s3://bucket/folder}"'
# A store needs the package that speaks with it; which store it is, only the jobs know.
_INSTALL = """python -m pip install --disable-pip-version-check "$PACKAGE"
case "${RWKVFLOW_REMOTE:-}" in
  s3://*) python -m pip install --disable-pip-version-check s3fs ;;
  gs://* | gcs://*) python -m pip install --disable-pip-version-check gcsfs ;;
  az://* | abfs://* | abfss://*) python -m pip install --disable-pip-version-check adlfs ;;
  sftp://*) python -m pip install --disable-pip-version-check paramiko ;;
esac
"""
WORKFLOWS = ".github/workflows"
WORKFLOW_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.ya?ml")
SIGNING = {"contents": "read", "id-token": "write", "attestations": "write"}  # what GitHub's signature takes
SUMS_FILE = "rwkvflow-release.sha256"
CRON = re.compile(r"(?:[0-9*/,-]{1,40} ){4}[0-9*/,-]{1,40}")
_MAKE = 'rwkvflow run "$RECIPE" --locked --sandbox "$SANDBOX" --only "$ONLY"'
_PUBLISH = 'rwkvflow publish "$RECIPE" --locked --sandbox "$SANDBOX"'


def github_workflow(settings: CiSettings, called: str) -> str:
    """.github/workflows/….yml: says when the one called `called`, a file beside it, makes and publishes the recipe."""
    _check(settings)
    if not WORKFLOW_FILE.fullmatch(called):
        raise UsageError(f"a workflow of GitHub cannot be called {called!r}", remedy="name a .yml file with --output")
    secrets = {name: f"${{{{ secrets.{name} }}}}" for name in settings.secrets}
    return _text(
        "github",
        settings,
        {
            "name": settings.name,
            "on": {
                "workflow_dispatch": {},
                **({"schedule": [{"cron": settings.schedule}]} if settings.schedule else {}),
            },
            "permissions": {"contents": "read"},
            "concurrency": {"group": f"rwkvflow-{settings.name}", "cancel-in-progress": False},
            "jobs": {
                "release": {
                    "uses": f"./{WORKFLOWS}/{called}",
                    "permissions": SIGNING,
                    **({"secrets": secrets} if secrets else {}),
                }
            },
        },
    )


def github_reusable(settings: CiSettings) -> str:
    """The workflow that is called: plan, fan out over the matrix, publish once, have GitHub sign what was published.

    The job that may sign runs nothing but the action that does, with a list of digests from the one before. Nothing of
    the recipe's runs where there is a right to sign, and whoever calls the workflow changes none of its steps.
    """
    _check(settings)
    setup: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4", "with": {"persist-credentials": False}},  # no token in .git/config
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.11"}},
        {"name": "Install", "run": _INSTALL},
    ]
    secrets = {name: f"${{{{ secrets.{name} }}}}" for name in settings.secrets}
    lock = PurePosixPath(settings.recipe).with_suffix(".lock.yaml").as_posix()
    fetched, kept = [], []
    if settings.schedule:
        # One lock for all jobs of a run: what the branch of a repository named when it was made.
        kept = [
            {"name": "Lock", "run": 'rwkvflow lock "$RECIPE" --sandbox "$SANDBOX" --fresh'},
            {"uses": "actions/upload-artifact@v4", "with": {"name": "lock", "path": lock}},
        ]
        folder = PurePosixPath(lock).parent.as_posix()
        fetched = [{"uses": "actions/download-artifact@v4", "with": {"name": "lock", "path": folder}}]
    matrix = f'rwkvflow matrix "$RECIPE" --by {settings.by} --format github > matrix.json'
    return _text(
        "github",
        settings,
        {
            "name": f"{settings.name}: make, publish and attest",
            "on": {
                "workflow_call": {"secrets": {name: {"required": False} for name in settings.secrets}}
                if settings.secrets
                else {}
            },
            "permissions": {"contents": "read"},
            "defaults": {"run": {"shell": "bash"}},
            "env": {
                "RECIPE": settings.recipe,
                "SANDBOX": settings.sandbox,
                "PACKAGE": settings.package,
                "RWKVFLOW_REMOTE": "${{ vars.RWKVFLOW_REMOTE }}",
            },
            "jobs": {
                "plan": {
                    "runs-on": "ubuntu-24.04",
                    "timeout-minutes": 10,
                    "outputs": {"matrix": "${{ steps.matrix.outputs.matrix }}"},
                    "steps": [
                        *setup,
                        *kept,
                        {
                            "name": "Matrix",
                            "id": "matrix",
                            "run": f'{_REMOTE}\nrwkvflow validate "$RECIPE"\n{matrix}\n'
                            'printf "matrix=%s\\n" "$(cat matrix.json)" >> "$GITHUB_OUTPUT"\n',
                        },
                    ],
                },
                "make": {
                    "name": "${{ matrix.id }}",
                    "needs": "plan",
                    "runs-on": "ubuntu-24.04",
                    "timeout-minutes": 350,
                    "strategy": {"fail-fast": False, "matrix": "${{ fromJSON(needs.plan.outputs.matrix) }}"},
                    "steps": [
                        *setup,
                        *fetched,
                        {"name": "Make", "env": {"ONLY": "${{ matrix.only }}", **secrets}, "run": _MAKE},
                    ],
                },
                "publish": {
                    "needs": "make",
                    "runs-on": "ubuntu-24.04",
                    "timeout-minutes": 350,
                    "steps": [
                        *setup,
                        *fetched,
                        {"name": "Publish", "env": secrets, "run": f"{_PUBLISH} --sums {SUMS_FILE}"},
                        {
                            "uses": "actions/upload-artifact@v4",
                            "with": {"name": "sums", "path": SUMS_FILE, "if-no-files-found": "error"},
                        },
                    ],
                },
                "attest": {
                    "needs": "publish",
                    "runs-on": "ubuntu-24.04",
                    "timeout-minutes": 10,
                    "permissions": SIGNING,
                    "steps": [
                        {"uses": "actions/download-artifact@v4", "with": {"name": "sums"}},
                        {
                            "id": "attest",
                            "uses": "actions/attest-build-provenance@v3",
                            "with": {"subject-checksums": SUMS_FILE},
                        },
                        {
                            "uses": "actions/upload-artifact@v4",
                            "with": {"name": "attestation", "path": "${{ steps.attest.outputs.bundle-path }}"},
                        },
                    ],
                },
            },
        },
    )


def gitlab_workflow(settings: CiSettings) -> str:
    """.gitlab-ci.yml: plan, a child pipeline over the matrix, publish once. Secrets are the project's variables."""
    _check(settings)
    return _text(
        "gitlab",
        settings,
        {
            "stages": ["plan", "make", "publish"],
            "variables": {"RECIPE": settings.recipe, "SANDBOX": settings.sandbox, "PACKAGE": settings.package},
            "default": _gitlab_default(),
            "plan": {
                "stage": "plan",
                "script": [
                    _REMOTE,
                    'rwkvflow validate "$RECIPE"',
                    f'rwkvflow matrix "$RECIPE" --by {settings.by} --format gitlab > rwkvflow-jobs.yml',
                ],
                "artifacts": {"paths": ["rwkvflow-jobs.yml"]},
            },
            "make": {
                "stage": "make",
                "trigger": {"include": [{"artifact": "rwkvflow-jobs.yml", "job": "plan"}], "strategy": "depend"},
            },
            "publish": {
                "stage": "publish",
                "needs": ["make"],
                "resource_group": f"rwkvflow-{settings.name}",
                "script": [_PUBLISH],
            },
        },
    )


def _gitlab_default() -> dict[str, Any]:
    return {"image": "python:3.11", "before_script": [_INSTALL]}


def _check(settings: CiSettings) -> None:
    """Values end up in env: blocks, where $ and ${{ }} would mean something to the CI service."""
    path = settings.recipe
    if path.startswith(("/", "-")) or ".." in path.split("/"):
        raise UsageError(f"the recipe must be a path inside the repository, not {path}")
    for what, value in (("the recipe's path", path), ("--package", settings.package)):
        if not value or any(character in "$`\\\"'" or not character.isprintable() for character in value):
            raise UsageError(f"{what} cannot be used in a CI workflow: {value!r}", remedy="use plain characters")
    if settings.schedule and not CRON.fullmatch(settings.schedule):
        raise UsageError(
            f"--schedule: {settings.schedule!r} is no cron expression", remedy='five fields in UTC: "17 4 * * 1"'
        )
    for name in settings.secrets:
        if not SECRET.match(name):
            raise UsageError(f"--secret {name}: not the name of an environment variable")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _string)


def _text(service: str, settings: CiSettings, document: Mapping[str, Any]) -> str:
    head = [
        f"Written by `rwkvflow ci {service}`; write it again rather than edit it.",
        "All jobs share their steps through the store at RWKVFLOW_REMOTE, "
        + ("a variable of the repository." if service == "github" else "a CI/CD variable of the project."),
        "Each job makes its part of the matrix; the last one publishes once, what all of them made.",
    ]
    return "".join(f"# {line}\n" for line in head) + dump(document)


def dump(document: Mapping[str, Any]) -> str:
    """YAML in the order given."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def listing(found: Iterable[CiJob]) -> list[dict[str, Any]]:
    """For --format json."""
    return [{"id": job.id, "only": job.only, "artifacts": list(job.artifacts)} for job in found]
