"""Worker images in a registry, named by digest: what a release was made in, for whoever has to keep it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rwkvflow.base.errors import PublishError
from rwkvflow.documents.destinations import OciDestination
from rwkvflow.net.http import Policy, scrub
from rwkvflow.net.oci_registry import OciRegistry
from rwkvflow.net.progress import Told
from rwkvflow.sandbox.base import OnLine
from rwkvflow.sandbox.daemon import plain_errors

if TYPE_CHECKING:
    import docker


def push_image(client: docker.DockerClient, image: str, place: OciDestination, on_line: OnLine) -> str:
    """Push an image of the engine; returns registry/name@sha256:…, read back from the registry.

    The login is Docker's. Layers that the registry has are not sent again. Raises PublishError, and
    EnvironmentMissing where there is no such image.
    """
    import docker.errors

    name = f"{place.registry}/{place.repository}"
    digest = None
    with plain_errors(f"pushing {image}"):
        client.images.get(image).tag(name, tag=place.tag)
        try:
            for event in client.api.push(name, tag=place.tag, stream=True, decode=True):
                if "error" in event:
                    raise PublishError(
                        f"{place}: {scrub(str(event['error']))}",
                        remedy=f"`docker login {place.registry}` as somebody who may push to {place.repository}",
                    )
                if event.get("status") and "progress" not in event:
                    on_line(" ".join(str(event[key]) for key in ("id", "status") if key in event))
                if isinstance(event.get("aux"), dict):
                    digest = event["aux"].get("Digest")
        finally:
            with contextlib.suppress(docker.errors.APIError):
                client.api.remove_image(f"{name}:{place.tag}", noprune=True)  # only the name that was made above
    with OciRegistry(place, Policy(), Told(log=on_line)) as registry:
        found = registry.manifest(place.tag)
    if found is None or found[0] != digest:
        raise PublishError(
            f"{place} names {found[0] if found else 'nothing'} and not {digest}, which was just pushed",
            remedy="somebody else may push there; run again, or take another name",
        )
    return f"{name}@{digest}"
