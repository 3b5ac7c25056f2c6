"""What is attached to an image in a registry: the referrers of its manifest, or those of the fallback tag.

Written against the OCI Distribution Specification 1.1. Anybody who may push can attach something, and a fallback tag
may list whatever its writer likes: an entry counts only where the manifest that it names has ours as its subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.documents.destinations import OciDestination, parse_destination
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_registry import OciRegistry, is_digest
from rwkvflow.net.progress import Told
from rwkvflow.release.provenance.attestation import BUNDLE_TYPE, MOST_BYTES


def attached(place: str, most: int, policy: Policy | None = None) -> Iterator[tuple[str, bytes]]:
    """(where from, bytes) of each Sigstore bundle attached to an image. Raises FetchError, PublishError, UsageError."""
    parsed = parse_destination(place)
    if not isinstance(parsed, OciDestination):
        raise UsageError(f"{place} names no image", remedy=f"write it as {OciDestination.example}")
    with OciRegistry(parsed, policy or Policy(), Told()) as registry:
        subject = registry.manifest(parsed.tag)
        if subject is None:
            raise FetchError(f"{place}: there is no such image")
        for digest in _referrers(registry, subject[0])[:most]:
            found = registry.manifest(digest)
            if found is None or not _about(found[1], subject[0]):
                continue
            for layer in found[1].get("layers", ()):
                if isinstance(layer, dict) and layer.get("mediaType") == BUNDLE_TYPE and _small(layer):
                    yield f"{place}@{digest[:19]}", registry.blob(layer["digest"], MOST_BYTES)


def _referrers(registry: OciRegistry, digest: str) -> list[str]:
    """Digests of what says that it is about a manifest: from the registry's own list, else from the fallback tag."""
    index = registry.referrers(digest)
    if index is None:
        tag = registry.manifest(digest.replace(":", "-"))
        index = tag[1] if tag is not None else {}
    rows = index.get("manifests")
    listed = [row.get("digest") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [digest for digest in listed if is_digest(digest)]


def _about(manifest: Mapping[str, Any], digest: str) -> bool:
    subject = manifest.get("subject")
    return isinstance(subject, dict) and subject.get("digest") == digest and isinstance(manifest.get("layers"), list)


def _small(layer: Mapping[str, Any]) -> bool:
    return isinstance(layer.get("size"), int) and 0 < layer["size"] <= MOST_BYTES and is_digest(layer.get("digest"))
