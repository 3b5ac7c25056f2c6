"""The id of an image, which is the digest of its configuration: made anew from what decides what the image does.

The layers of an image are the same bytes wherever it is built (Dockerfile.j2, stage.py). What the classic builder
writes of them is not: it notes when each step was done, and the ids of images and containers that it made on the way.
So the engine is given another configuration for the same layers, which it has, and which therefore need not be sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import StepFailed
from rwkvflow.sandbox.base import OnLine
from rwkvflow.sandbox.daemon import plain_errors
from rwkvflow.sandbox.image.archive import ArchiveEntry, stream

if TYPE_CHECKING:
    import docker

CREATED = "2024-01-01T00:00:00Z"  # SOURCE_DATE_EPOCH of dockerfile.py
# All that the specification of images knows of what a container of it does; what engines write besides, such as the id
# of the image that a step began with, is of one machine.
_KEPT = (
    "ArgsEscaped",
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)
_PLATFORM = (("Architecture", "architecture"), ("Os", "os"), ("Variant", "variant"))


def configuration(found: Mapping[str, Any]) -> bytes:
    """The configuration of an image of which the engine says `found`; the same for the same layers and settings.

    Written after OCI's image specification (config.md): JSON with sorted keys, without what is empty.
    """
    settings = found.get("Config") or {}
    layers = _layers(found)
    value = {
        **{name: found[key] for key, name in _PLATFORM if found.get(key)},
        "created": CREATED,
        "config": {key: settings[key] for key in _KEPT if settings.get(key)},
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [{"created": CREATED, "created_by": f"rwkvflow: layer {layer}"} for layer in layers],
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _layers(found: Mapping[str, Any]) -> list[str]:
    return list((found.get("RootFS") or {}).get("Layers") or ())


def image_id(config: bytes) -> str:
    """The id that an engine gives to an image with this configuration."""
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def archive(config: bytes, reference: str, layers: Sequence[str]) -> bytes:
    """What `docker load` takes: the configuration and the name, with the names of layers and none of their bytes."""
    name = f"{image_id(config).removeprefix('sha256:')}.json"
    paths = [f"{layer.removeprefix('sha256:')}/layer.tar" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": paths}], sort_keys=True).encode()
    return b"".join(stream([ArchiveEntry(name, config), ArchiveEntry("manifest.json", manifest)]))


def settle(reference: str, client: docker.DockerClient, on_line: OnLine) -> None:
    """Let a name stand for the same layers under the id that other machines give them.

    An engine that wants the bytes of all layers (podman, containerd's image store) keeps the image as it was built,
    with an id of its own, and a line says so.
    """
    import docker.errors

    with plain_errors(f"image {reference}"):
        built = client.images.get(reference)
        config = configuration(built.attrs)
        wanted = image_id(config)
        if built.id == wanted:
            return
        why = ""
        try:
            client.images.load(archive(config, reference, _layers(built.attrs)))
        except docker.errors.DockerException as error:
            why = f": {getattr(error, 'explanation', None) or error}"
        name, _, tag = reference.rpartition(":")
        if client.images.get(reference).id == wanted:
            on_line(f"image {wanted}")
            return
        built.tag(name, tag)
        on_line(f"image {built.id}; this engine gives it an id that other machines do not{why}")
        if client.images.get(reference).id != built.id:
            raise StepFailed(f"image {reference}: the engine gives this name to another image", remedy="run again")
