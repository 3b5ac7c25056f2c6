"""Base images: which digest a reference stands for, and having that very image in the engine."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rwkvflow.base.errors import EnvironmentMissing, LockError, StepFailed
from rwkvflow.documents.lock import LockedBase
from rwkvflow.sandbox.base import OnLine
from rwkvflow.sandbox.daemon import connect, plain_errors, remedy_for
from rwkvflow.sandbox.image.base_names import command_for
from rwkvflow.sandbox.image.dockerfile import LOCAL, from_reference, split_reference

if TYPE_CHECKING:
    import docker
    from docker.models.images import Image

OURS = ("rwkvflow-base", "rwkvflow/")  # never asked of a registry


def chain_id(layers: Sequence[str]) -> str:
    """The OCI ChainID of uncompressed layer digests: of a single layer, its own digest.

    It names the root file system, whatever the date in the image's configuration (image-spec, config.md).
    """
    chain = ""
    for layer in layers:
        chain = layer if not chain else "sha256:" + hashlib.sha256(f"{chain} {layer}".encode()).hexdigest()
    if not chain:
        raise LockError("an image without layers cannot be a base")
    return chain


def base_digest(reference: str, client: docker.DockerClient | None = None) -> LockedBase:
    """Pin a reference: to the registry's manifest digest, or, for an image that only this engine has, to its files.

    Raises EnvironmentMissing where neither the engine nor the registry knows the image.
    """
    import docker.errors

    client = client or connect()
    name, _, digest = split_reference(reference)
    if digest:
        return LockedBase(reference=reference, digest=digest, kind="registry")
    image = local_image(reference, client)
    known = [item for item in (image.attrs.get("RepoDigests") or ()) if same_repository(item, name)] if image else []
    if image is not None and (name.startswith(OURS) or not known):
        return LockedBase(reference=reference, digest=root_digest(image), kind="local")
    if name.startswith(OURS):
        raise EnvironmentMissing(
            f"the Docker engine has no image {reference}", remedy=f"make it with `{command_for(reference)}`"
        )
    try:
        found = client.images.get_registry_data(reference).id
    except (docker.errors.DockerException, OSError) as error:
        if known:  # out of reach, but pulled before
            return LockedBase(reference=reference, digest=known[0].partition("@")[2], kind="registry")
        text = str(getattr(error, "explanation", None) or error)
        raise EnvironmentMissing(
            f"base image {reference}: {text}",
            remedy=remedy_for(text) or "check `image.base` in the recipe, or `rwkvflow image bootstrap` one",
        ) from error
    return LockedBase(reference=reference, digest=str(found), kind="registry")


def same_repository(known: str, name: str) -> bool:
    """Whether "name@sha256:…" is of this repository, Docker Hub's short names taken into account."""

    def full(short: str) -> str:
        return short.removeprefix("docker.io/").removeprefix("library/")

    return full(known.partition("@")[0]) == full(name)


def local_image(reference: str, client: docker.DockerClient) -> Image | None:
    """The image in this engine, or None."""
    import docker.errors

    with plain_errors(f"base image {reference}"):
        try:
            return client.images.get(reference)
        except docker.errors.ImageNotFound:
            return None


def root_digest(image: Image) -> str:
    """ChainID of an image's layers."""
    return chain_id(image.attrs.get("RootFS", {}).get("Layers") or [])


def ensure_base(pinned: str, client: docker.DockerClient, on_line: OnLine) -> str:
    """Have the pinned base in the engine under what stands after FROM, and give that back. Pulls where necessary.

    Raises EnvironmentMissing where it cannot be had, StepFailed where the local image is not the locked one.
    """
    wanted = from_reference(pinned)
    present = local_image(wanted, client)
    if not pinned.startswith(LOCAL):
        if present is None:
            name, _, digest = split_reference(wanted)
            on_line(f"pulling {name}@{digest}")
            with plain_errors(f"pulling base image {pinned}"):
                client.images.pull(f"{name}@{digest}")
        return wanted
    name, tag, digest = split_reference(pinned.removeprefix(LOCAL))
    if present is not None and root_digest(present) == digest:
        return wanted
    image = local_image(f"{name}:{tag}", client)
    if image is None:
        command = command_for(f"{name}:{tag}")
        raise EnvironmentMissing(
            f"the Docker engine has no image {name}:{tag}",
            remedy=f"make it with `{command}`, or load the locked one: docker save … | docker load",
        )
    if (found := root_digest(image)) != digest:
        raise StepFailed(
            f"base image {name}:{tag} has the files {found}, the lock says {digest}",
            remedy="`rwkvflow lock` takes the one that is here; or load the locked one with `docker load`",
        )
    with plain_errors(f"naming base image {name}:{tag}"):
        repository, _, short = wanted.partition(":")
        image.tag(repository, short)
    return wanted


def forget(reference: str, client: docker.DockerClient) -> None:
    """Remove a name; the image goes with its last one."""
    import docker.errors

    with contextlib.suppress(docker.errors.ImageNotFound), plain_errors(f"removing {reference}"):
        client.images.remove(reference, noprune=True)
