"""What is attached to an image in a registry: the referrers of its manifest, or those of the fallback tag.

Written against the OCI Distribution Specification 1.1. Anybody who may push can attach something, and a fallback tag
may list whatever its writer likes: an entry counts only where the manifest that it names has ours as its subject.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rwkvflow.base.errors import FetchError, PublishError, UsageError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.destinations import OciDestination, parse_destination
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_registry import INDEX, MANIFEST, OciRegistry, is_digest
from rwkvflow.net.progress import Told
from rwkvflow.release.artifacts import from_bytes
from rwkvflow.release.provenance.attestation import BUNDLE_TYPE, MOST_BYTES

EMPTY = "application/vnd.oci.empty.v1+json"
TRIES = 5  # of the fallback tag, which others may write at the same time


def attached(place: str, most: int, policy: Policy | None = None) -> Iterator[tuple[str, bytes]]:
    """(where from, bytes) of each Sigstore bundle attached to an image. Raises FetchError, PublishError, UsageError."""
    parsed = _parsed(place)
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


def attach(place: str, data: bytes, policy: Policy | None = None) -> str:
    """Attach a Sigstore bundle to an image; the address of its manifest. The same bundle again changes nothing.

    Where the registry keeps no list of referrers, the fallback tag is written, as the specification asks of clients.
    Raises FetchError where there is no such image, PublishError, UsageError.
    """
    parsed = _parsed(place)
    with OciRegistry(parsed, policy or Policy(), Told()) as registry:
        found = registry.raw_manifest(parsed.tag)
        if found is None:
            raise FetchError(f"{place}: there is no such image", remedy="attach it to an image of the release")
        blobs = [from_bytes("config", b"{}"), from_bytes("bundle", data)]
        for blob in blobs:
            if not registry.has(blob.digest, blob.size):
                registry.upload(blob, lambda position: None)
        config, layer = (
            {"mediaType": kind, "digest": blob.digest, "size": blob.size}
            for kind, blob in zip((EMPTY, BUNDLE_TYPE), blobs, strict=True)
        )
        kind = found[1].get("mediaType")
        subject = _descriptor(found[0], kind if isinstance(kind, str) else MANIFEST)
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": BUNDLE_TYPE,
            "config": config,
            "layers": [layer],
            "subject": subject,
        }
        manifest = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        registry.put_manifest(text_digest(manifest), manifest)
        if registry.referrers(subject["digest"]) is None:
            _list(registry, subject["digest"], {**_descriptor(manifest, MANIFEST), "artifactType": BUNDLE_TYPE})
        return f"oci://{parsed.registry}/{parsed.repository}@{text_digest(manifest)}"


def _list(registry: OciRegistry, subject: str, row: Mapping[str, Any]) -> None:
    """Add a row to the fallback tag. Two who do so at once may lose one, so it is looked at once more."""
    tag = subject.replace(":", "-")
    for left in reversed(range(TRIES + 1)):
        there = registry.manifest(tag)
        listed = there[1].get("manifests") if there is not None else None
        rows = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        if any(item.get("digest") == row["digest"] for item in rows):
            return
        if not left:
            break
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*rows, dict(row)]}
        registry.put_manifest(tag, json.dumps(index, sort_keys=True, separators=(",", ":")).encode(), INDEX)
    raise PublishError(
        f"{registry.place}: {tag} does not list what was attached, though it was written {TRIES} times",
        remedy="others write to it at the same time: run again",
    )


def _descriptor(manifest: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": text_digest(manifest), "size": len(manifest)}


def _parsed(place: str) -> OciDestination:
    parsed = parse_destination(place)
    if not isinstance(parsed, OciDestination):
        raise UsageError(f"{place} names no image", remedy=f"write it as {OciDestination.example}")
    return parsed


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
