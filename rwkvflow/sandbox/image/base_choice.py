"""Which base image a recipe gets when its lock is made, and which Python is in it.

The lock pins it, so this is asked once: a run never takes another one than its lock says.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import EnvironmentMissing
from rwkvflow.base.events import Listener, Notice, silent
from rwkvflow.documents.lock import LockedBase
from rwkvflow.documents.names import SUITES, official_base, own_base
from rwkvflow.documents.recipe import Recipe
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_image import image_config
from rwkvflow.sandbox.daemon import connect, platform_of
from rwkvflow.sandbox.image.base_image import base_digest, local_image
from rwkvflow.sandbox.image.base_names import command_for, other_python
from rwkvflow.sandbox.image.bootstrap import bootstrap_image, tools
from rwkvflow.sandbox.image.dockerfile import split_reference

if TYPE_CHECKING:
    import docker

ASK_S = 20  # the engine's time to ask a registry for a digest
QUICK = Policy(attempts=2, connect_s=10.0, stall_s=20.0)


class Bases:
    """What `resolve` asks for base images. Its file and recipe say where a wrong Python is told."""

    def __init__(
        self, root: Path, recipe: Recipe | None = None, file: Path | None = None, emit: Listener = silent
    ) -> None:
        self.root, self.recipe, self.file, self.emit = root, recipe, file, emit

    @cached_property
    def client(self) -> docker.DockerClient:
        """The engine, connected to when it is first needed."""
        return connect()

    def __call__(self, reference: str | None, python: str) -> LockedBase:
        """Pin a base image, or choose one and pin it.

        Raises EnvironmentMissing where none is to be had, DocumentError where it has another Python.
        """
        base = base_digest(reference, self.client) if reference is not None else self._chosen(python)
        there = python_in(base, self.client)
        if there not in (None, python) and self.recipe is not None and self.file is not None:
            images = enumerate(self.recipe.images)
            index = next(i for i, image in images if image.base in (None, reference) and image.python == python)
            raise other_python(self.file, index, base.reference, there, python)
        return base

    def _chosen(self, python: str) -> LockedBase:
        """The slim image of a Python; where no registry is reached, the image of Debian packages, which is said."""
        try:
            return official(python)
        except EnvironmentMissing as error:
            problem = error
        own = own_base(python)
        if own is None:
            raise EnvironmentMissing(
                f"{problem.message}; and no release of Debian has Python {python}, to make a base image of",
                remedy="name a base image that can be had in `image.base`, or `docker load` one",
            ) from problem
        if local_image(own, self.client) is not None:
            self.emit(Notice(f"{problem.message}: the base image is {own}, made of Debian packages", "warning"))
            return base_digest(own, self.client)
        if not tools():
            raise EnvironmentMissing(
                f"{problem.message}; and there is no {own}",
                remedy=f"make the registry reachable, or `apt-get install mmdebstrap` and `{command_for(own)}`",
            ) from problem
        self.emit(Notice(f"{problem.message}: making the base image {own} of Debian packages instead", "warning"))
        suite = next(suite for suite, there in SUITES.items() if there == python)
        return bootstrap_image(suite, root=self.root, client=self.client)


def official(python: str) -> LockedBase:
    """The slim image of a Python, as the engine or the registry has it. Raises EnvironmentMissing.

    The digest is that of the registry's index, where it has images for several platforms, so one lock is for all.
    """
    reference = official_base(python)
    if reference is None:
        raise EnvironmentMissing("no registry is to be asked (RWKVFLOW_REGISTRY=none)")
    split_reference(reference)  # what the environment says may be no reference at all
    client = connect()
    client.api.timeout = ASK_S  # of a connection of its own: others do longer work
    try:
        return base_digest(reference, client)
    finally:
        client.close()


def nothing_to_be_had(python: str, client: docker.DockerClient) -> str | None:
    """Why this engine can have no base image with a Python right now; None where it can."""
    own = own_base(python)
    if own is not None and local_image(own, client) is not None:
        return None
    try:
        official(python)
    except EnvironmentMissing as error:
        made = f", and the engine has no {own} yet (`{command_for(own)}` makes it)" if own else ""
        return f"{error.message}{made}"
    return None


def python_in(base: LockedBase, client: docker.DockerClient) -> str | None:
    """The Python of a base image, as its configuration says it; None where that says nothing or cannot be had.

    Then the image's build says it.
    """
    name, tag, _ = split_reference(base.reference)
    known = f"{name}@{base.digest}" if base.kind == "registry" else f"{name}:{tag or 'latest'}"
    image = local_image(known, client)
    if image is not None:
        config = image.attrs.get("Config")
    else:
        found = image_config(name, base.digest, platform_of(client.info()), QUICK) if base.kind == "registry" else None
        config = (found or {}).get("config")
    return _python_of_config(config if isinstance(config, dict) else {})


def _python_of_config(config: Mapping[str, Any]) -> str | None:
    """From PYTHON_VERSION, which official images set, or our own label."""
    environment = dict(item.partition("=")[::2] for item in config.get("Env") or () if isinstance(item, str))
    version = environment.get("PYTHON_VERSION", "")
    if version.count("."):
        return ".".join(version.split(".")[:2])
    label = (config.get("Labels") or {}).get("org.rwkvflow.base")
    return SUITES.get(label) if isinstance(label, str) else None
