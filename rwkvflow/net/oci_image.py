"""What a registry says of an image before anybody has pulled it: its configuration, held against its digest."""

from __future__ import annotations

import json
from typing import Any

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.documents.destinations import OciDestination
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_registry import OciRegistry, is_digest
from rwkvflow.net.progress import Told

MOST = 4 << 20  # bytes of a configuration; those of official images have some kilobytes
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def place_of(name: str) -> OciDestination:
    """The registry and the repository of an image's name, as Docker reads it: python is docker.io/library/python."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, repository = first, rest
    else:
        registry, repository = "docker.io", name
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return OciDestination(registry, repository, "latest")


def image_config(name: str, digest: str, platform: str, policy: Policy) -> dict[str, Any] | None:
    """The configuration of an image that `digest` pins; of an index, that of the image for a platform.

    None where the registry is not reached from here, or does not have it: the engine may know another way to it.
    """
    try:
        with OciRegistry(place_of(name), policy, Told()) as registry:
            found = _manifest(registry, digest)
            if found is not None and isinstance(found.get("manifests"), list):
                one = _for_platform(found["manifests"], platform)
                found = _manifest(registry, one) if one else None
            config = (found or {}).get("config")
            wanted = config.get("digest") if isinstance(config, dict) else None
            if not is_digest(wanted):
                return None
            value = json.loads(registry.blob(wanted, MOST))
    except (RwkvflowError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _manifest(registry: OciRegistry, digest: str) -> dict[str, Any] | None:
    found = registry.manifest(digest)
    return found[1] if found is not None and found[0] == digest else None


def _for_platform(rows: list[Any], platform: str) -> str | None:
    """The digest of an index's row for linux-x86_64 or linux-aarch64."""
    system, _, machine = platform.partition("-")
    for row in rows:
        there = row.get("platform") if isinstance(row, dict) else None
        if isinstance(there, dict) and (there.get("os"), there.get("architecture")) == (
            system,
            _MACHINES.get(machine, machine),
        ):
            digest = row.get("digest")
            return digest if is_digest(digest) else None
    return None
