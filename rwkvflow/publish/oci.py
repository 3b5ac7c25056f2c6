"""Publish to an OCI registry as a ModelPack artifact (the CNCF's model-spec): one manifest, one layer a file.

A release has one manifest, byte for byte: nothing in it says when or where. So its digest tells whether the tag names
this release already. The blobs come first, the manifest last: a tag names one whole release or another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rwkvflow.base.errors import PublishError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.destinations import OciDestination
from rwkvflow.documents.formats import family_of, quantization_of
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_registry import MANIFEST, OciRegistry
from rwkvflow.net.progress import Told
from rwkvflow.plan.step import canonical
from rwkvflow.publish.base import Changes, FileChange, Given, Proven, Published, refuse_others
from rwkvflow.release.artifacts import ReleaseFile, from_bytes
from rwkvflow.release.model_card.card import human_count
from rwkvflow.release.names import CARD, PLOT, SUMS
from rwkvflow.release.release import Release

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # what oras names a file by
DOCUMENTS = re.compile(rf"{re.escape(CARD)}|{re.escape(PLOT)}|.*\.(md|txt|svg|html)", re.IGNORECASE)


def publisher(place: OciDestination, given: Given) -> OciPublisher:
    """As OciDestination names it."""
    return OciPublisher(place)


class OciPublisher:
    """oci://registry/name:tag."""

    def __init__(self, place: OciDestination, policy: Policy | None = None) -> None:
        self.place, self.policy = place, policy or Policy()
        self._proven = Proven()

    def plan(self, release: Release) -> Changes:
        """What the tag would name instead of what it names now."""
        data = manifest_bytes(release)
        with OciRegistry(self.place, self.policy, Told()) as registry:
            there = self._there(registry, release)
            old = {} if there is None else _layers(there[1])
        same = there is not None and there[0] == text_digest(data)
        new = {file.path: file for file in release.files}
        changes = [
            FileChange("replace" if path in old else "add", path, file.size)
            for path, file in new.items()
            if old.get(path) != file.digest
        ]
        written = len(changes)
        changes += [FileChange("delete", path) for path in sorted(old) if path not in new]
        notes = []
        if not same:
            notes.append(f"{self.place.tag} becomes {text_digest(data)}" + (f", it is {there[0]}" if there else ""))
        return Changes(str(self.place), tuple(changes), len(new) - written, tuple(notes))

    def apply(self, release: Release, told: Told) -> Published:
        """Upload what lacks, name it, read it back. Raises PublishError."""
        config, data = config_file(release), manifest_bytes(release)
        digest = text_digest(data)
        with OciRegistry(self.place, self.policy, told) as registry:
            there = self._there(registry, release)
            sent = 0
            if there is None or there[0] != digest:
                sent = self._upload(registry, [*release.files, config], told)
                told.check()
                registry.put_manifest(self.place.tag, data)
                self._verify(registry, release, digest)
        facts = {"digest": digest, "files": str(len(release.files)), "uploaded": str(sent)}
        return Published(f"{self.place}@{digest}", facts)

    def _there(self, registry: OciRegistry, release: Release) -> tuple[str, dict[str, Any]] | None:
        there = registry.manifest(self.place.tag)
        if there is not None and there[1].get("artifactType") != ARTIFACT:
            kind = there[1].get("artifactType") or there[1].get("mediaType") or "something else"
            raise PublishError(
                f"{self.place} is there already and is no model but {kind}", remedy="publish to another name or tag"
            )
        notes = there[1].get("annotations") if there is not None else None
        title = notes.get(TITLE) if isinstance(notes, dict) else None
        refuse_others(str(self.place), title if isinstance(title, str) else None, release)
        return there

    def _upload(self, registry: OciRegistry, files: list[ReleaseFile], told: Told) -> int:
        """Returns how many blobs were sent; equal files are one blob."""
        lacking = {file.digest: file for file in files if not registry.has(file.digest, file.size)}
        total, done = sum(file.size for file in lacking.values()), 0
        for file in lacking.values():
            self._proven.check(file)
            before = done
            registry.upload(file, lambda position, before=before: told.progress(before + position, total))  # type: ignore[misc]
            done += file.size
        return len(lacking)

    def _verify(self, registry: OciRegistry, release: Release, digest: str) -> None:
        """Registries check digests when they store: so the digests of what they say is there suffice."""
        found = registry.manifest(self.place.tag)
        if found is None or found[0] != digest:
            now = "nothing" if found is None else found[0]
            raise PublishError(
                f"{self.place} names {now} and not {digest}, which was just pushed",
                remedy="somebody else may publish there; run again, or take another tag",
            )
        lacking = [file.path for file in release.files if not registry.has(file.digest, file.size)]
        if lacking:
            raise PublishError(
                f"{self.place}: the registry lost {', '.join(lacking[:5])}", remedy="run again; see the registry's log"
            )


def manifest_bytes(release: Release) -> bytes:
    """The manifest, canonical: equal for equal releases."""
    config = config_file(release)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": [
            {
                "mediaType": layer_type(release, file.path),
                "digest": file.digest,
                "size": file.size,
                "annotations": {FILEPATH: file.path, TITLE: file.path},
            }
            for file in release.files
        ],
        "annotations": {TITLE: release.name},
    }
    return canonical(manifest)


def config_file(release: Release) -> ReleaseFile:
    """The model config: what the spec has fields for, where all artifacts of the release agree on it."""
    config: dict[str, str] = {"architecture": "rwkv"}
    formats = {family_of(row.format) for row in release.rows}
    if len(formats) == 1:
        config["format"] = formats.pop()
    quantized = {text for row in release.rows if (text := quantization_of(row.format))}
    if len(quantized) == 1 and len(release.rows) == 1:
        config["quantization"] = quantized.pop()
    parameters = {row.facts.get("parameters") for row in release.rows}
    if len(parameters) == 1 and isinstance(count := parameters.pop(), int):
        config["paramSize"] = human_count(count).replace(" ", "").lower()  # "191m"
    value = {
        "descriptor": {"name": release.name, "family": "rwkv"},
        "modelfs": {"type": "layers", "diffIds": [file.digest for file in release.files]},
        "config": config,
    }
    return from_bytes("config.json", canonical(value))


def layer_type(release: Release, path: str) -> str:
    """Media type of a file: weights, documents, and the rest, which describes the weights."""
    if any(path == row.path or path in row.files for row in release.rows):
        return WEIGHT
    return DOC if DOCUMENTS.fullmatch(path) or path == SUMS else WEIGHT_CONFIG


def _layers(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Path → digest of what a manifest holds; whatever is odd in it is left out."""
    found = {}
    layers = manifest.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        notes = layer.get("annotations") if isinstance(layer, dict) else None
        if isinstance(notes, dict) and FILEPATH in notes:
            found[str(notes[FILEPATH])] = str(layer.get("digest"))
    return found
