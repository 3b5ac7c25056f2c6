"""Which sandbox a run takes, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.sandbox.base import Sandbox

NAMES = ("auto", "docker", "host")


def choose(wanted: str, root: Path, bases: Iterable[str] = ()) -> tuple[Sandbox, str]:
    """The sandbox, and the reason in words. `root` is the store's folder, `bases` the base images of the recipe.

    `auto` takes Docker where a usable engine on this machine answers and can have a base image, else the host. Raises
    UsageError for an unknown name, EnvironmentMissing where Docker was asked for and does not answer.
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
            return host, f"{reason}; {host.description}"
    except EnvironmentMissing as error:
        if wanted == "docker":
            raise
        return host, f"{error.message}; {host.description}"
    return docker, f"{'asked for' if wanted == 'docker' else 'a Docker engine answers'} (version {version})"


def _reason_against(docker: object, bases: Iterable[str]) -> str | None:
    """Why an engine that answers is no good for a run that did not ask for it."""
    from rwkvflow.sandbox.base_image import OURS, local_image
    from rwkvflow.sandbox.base_names import command_for
    from rwkvflow.sandbox.docker import DockerSandbox

    assert isinstance(docker, DockerSandbox)  # noqa: S101 - imported late for the start-up time
    address = os.environ.get("DOCKER_HOST", "")
    if address and not address.startswith(("unix://", "npipe://")):
        return f"the Docker engine at {address} is on another machine, which does not see this one's files"
    if str(docker.info.get("OSType", "linux")) != "linux":
        return "the Docker engine runs Windows containers"
    for base in dict.fromkeys(bases):
        if base.startswith(OURS) and local_image(base, docker.client) is None:
            return f"the Docker engine has no {base} yet (`{command_for(base)}` makes it)"
    return None
