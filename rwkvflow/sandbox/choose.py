"""Which sandbox a run takes, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.sandbox.base import Sandbox

if TYPE_CHECKING:
    from rwkvflow.documents.recipe import Recipe
    from rwkvflow.documents.workflow import Workflow
    from rwkvflow.sandbox.host import HostSandbox

NAMES = ("auto", "docker", "host")
Wanted = tuple[str | None, str]  # a base image, None for whichever is to be had, and its Python


def choose(wanted: str, root: Path, bases: Iterable[Wanted] = (), own_code: str | None = None) -> tuple[Sandbox, str]:
    """The sandbox, and the reason in words. `root` is the store's folder, `bases` what `bases_of` says of the recipe.

    `auto` takes Docker where a usable engine on this machine answers and can have a base image, else the host; but for
    a recipe that brings code of its own (`own_code` says which, see `brings_code`) only a host with walls. Raises
    UsageError for an unknown name, EnvironmentMissing where Docker was asked for and does not answer, or where `auto`
    finds no place for such code.
    """
    from rwkvflow.sandbox.host import HostSandbox

    host = HostSandbox(root / "environments")
    if wanted == "host":
        return host, f"asked for; {host.description}"
    if wanted not in NAMES:
        raise UsageError(f"unknown sandbox {wanted!r}; there are {', '.join(NAMES)}")
    from rwkvflow.sandbox.docker import DockerSandbox

    docker = DockerSandbox()
    try:
        version = docker.info.get("ServerVersion")
        if wanted == "auto" and (reason := _reason_against(docker, bases)):
            return _fallen_back(host, reason, own_code)
    except EnvironmentMissing as error:
        if wanted == "docker":
            raise
        return _fallen_back(host, error.message, own_code)
    return docker, f"{'asked for' if wanted == 'docker' else 'a Docker engine answers'} (version {version})"


def _fallen_back(host: HostSandbox, reason: str, own_code: str | None) -> tuple[Sandbox, str]:
    why = f"{reason}; {host.description}"
    check_kept_in(host, "auto", why, own_code)
    return host, why


def check_kept_in(sandbox: Sandbox, wanted: str, why: str, own_code: str | None) -> None:
    """Raises EnvironmentMissing where `auto` took a host without walls, and there is code of others to run."""
    from rwkvflow.sandbox.isolation.walls import walls

    if own_code and wanted == "auto" and sandbox.name == "host" and not walls().whole:
        raise EnvironmentMissing(
            f"{own_code}: that is code of its own, and nothing here would keep it in: {why}",
            remedy="make Docker work (`rwkvflow doctor`), or say --sandbox host if you trust it with your files",
        )


def brings_code(recipe: Recipe, workflow: Workflow) -> str | None:
    """What of a recipe and its workflow runs code that neither ships with rwkvflow nor is pinned by it, in words."""
    engine = recipe.engine
    if engine.source != "builtin":
        return "the recipe brings an engine"
    if engine.cmake or engine.patches:
        return "the recipe changes how the engine is built"
    if any(image.wheels for image in recipe.images):
        return "the recipe brings wheels"
    if workflow.extra:
        return f"the workflow has the stage {workflow.extra[0].name}"
    return None


def _reason_against(docker: object, bases: Iterable[Wanted]) -> str | None:
    """Why an engine that answers is no good for a run that did not ask for it."""
    from rwkvflow.sandbox.docker import DockerSandbox
    from rwkvflow.sandbox.image.base_choice import nothing_to_be_had
    from rwkvflow.sandbox.image.base_image import OURS, local_image
    from rwkvflow.sandbox.image.base_names import command_for

    assert isinstance(docker, DockerSandbox)  # noqa: S101 - imported late for the start-up time
    address = os.environ.get("DOCKER_HOST", "")
    if address and not address.startswith(("unix://", "npipe://")):
        return f"the Docker engine at {address} is on another machine, which does not see this one's files"
    if str(docker.info.get("OSType", "linux")) != "linux":
        return "the Docker engine runs Windows containers"
    for base, python in dict.fromkeys(bases):
        if base is None:
            if reason := nothing_to_be_had(python, docker.client):
                return reason
        elif base.startswith(OURS) and local_image(base, docker.client) is None:
            return f"the Docker engine has no {base} yet (`{command_for(base)}` makes it)"
    return None
