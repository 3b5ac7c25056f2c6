"""The provenance of a release: an in-toto statement whose predicate is SLSA v1 provenance.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1. It is not signed by itself; model.sig
covers it with everything else. What stands where:

    subject                  every file but the statement itself, SHA256SUMS and model.sig, with its sha256;
                             annotations of an artifact: model, format, images
    externalParameters       the release's name, the digest of recipe.yaml, the key that it is to be signed with
    internalParameters       images, the engine's build requests and build.json, what was left out and why
    resolvedDependencies     the lock; checkpoints, tokenizers, engine sources, base images, wheels; the worker's code
    builder                  rwkvflow and its version
    byproducts               the files of each engine as it was built, and its CMake patch

Deterministic: the same run gives the same bytes. There is no time in it unless SOURCE_DATE_EPOCH gives one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rwkvflow import __version__
from rwkvflow.base.errors import PublishError
from rwkvflow.release.artifacts import ReleaseFile, Row
from rwkvflow.release.names import LOCK, RECIPE, UNLISTED_IN_STATEMENT
from rwkvflow.release.provenance.materials import Material, UsedEngine, materials

HOME = "urn:rwkvflow"  # a name, not a place: the statement must not depend on where the project is hosted
BUILD_TYPE = HOME + ":recipe:v1"
BUILDER = HOME + ":builder"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"


def statement_bytes(
    params: Mapping[str, Any],
    files: Sequence[ReleaseFile],
    rows: Iterable[Row],
    engines: Sequence[UsedEngine],
    left_out: Mapping[str, str],
    signed_by: str | None,
) -> bytes:
    """The statement as JSON, sorted and indented; `signed_by` is the key's fingerprint, see `signature`.

    Raises PublishError where the packages find it malformed, which would be an error of rwkvflow's own.
    """
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    notes = {path: row for row in rows for path in row.files}
    subjects = [
        ResourceDescriptor(
            name=file.path,
            digest={"sha256": file.digest.removeprefix("sha256:")},
            annotations=_annotations(notes.get(file.path)),
        ).pb
        for file in sorted(files, key=lambda file: file.path)
        if file.path not in UNLISTED_IN_STATEMENT
    ]
    digests = {file.path: file.digest.removeprefix("sha256:") for file in files}
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": _external(params, digests, signed_by),
            "internalParameters": _internal(params, engines, left_out),
            "resolvedDependencies": [
                _descriptor(LOCK, {"sha256": digests[LOCK]}),
                *(_dependency(material) for material in materials(params)),
            ],
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"rwkvflow": __version__}},
            "byproducts": [
                _descriptor(f"engine@{engine.image}/{path}", {"sha256": sha256})
                for engine in engines
                for path, sha256 in sorted(engine.files.items())
            ],
        },
    }
    if params.get("epoch") is not None:
        told = datetime.fromtimestamp(params["epoch"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        predicate["runDetails"]["metadata"] = {"finishedOn": told}
    try:
        json_format.ParseDict(predicate, provenance_pb2.Provenance())
        statement = Statement(subjects, PREDICATE_TYPE, predicate)
        statement.validate()
        content = _whole(json_format.MessageToDict(statement.pb))
    except (ValueError, json_format.ParseError) as error:
        raise PublishError(f"the provenance is malformed: {error}") from error
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _whole(value: Any) -> Any:
    """A Struct knows floating point only; write 5.0 as 5 again."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _annotations(row: Row | None) -> dict[str, Any]:
    return {} if row is None else {"model": row.model, "format": row.format, "images": list(row.images)}


def _external(params: Mapping[str, Any], digests: Mapping[str, str], signed_by: str | None) -> dict[str, Any]:
    external: dict[str, Any] = {"name": params["name"]}
    if RECIPE in digests:
        external["recipe"] = {"name": RECIPE, "digest": {"sha256": digests[RECIPE]}}
    if signed_by is not None:
        external["signedBy"] = {"sha256": signed_by}
    return external


def _internal(params: Mapping[str, Any], engines: Sequence[UsedEngine], left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "images": {name: _without_none(identity) for name, identity in params["images"].items()},
        "engine": {
            "source": params["engine"]["source"],
            "requests": {name: _without_none(request) for name, request in params["engine"]["builds"].items()},
            **_targets(params),
            "built": {engine.image: dict(engine.facts) for engine in engines},
            "cmakePatches": {engine.image: engine.patch for engine in engines if engine.patch},
        },
        "leftOut": dict(sorted(left_out.items())),
    }


def _targets(params: Mapping[str, Any]) -> dict[str, Any]:
    """What engines for other machines were built from, where there are any."""
    built = params.get("targets")
    return {"targets": {target: _without_none(request) for target, request in built.items()}} if built else {}


def _dependency(material: Material) -> dict[str, Any]:
    found = _descriptor(material.name, material.digest)
    if material.uri is not None:
        found["uri"] = material.uri
    notes: dict[str, Any] = {} if material.size is None else {"size": material.size}
    if material.images:
        notes["images"] = list(material.images)
    if notes:
        found["annotations"] = notes
    return found


def _descriptor(name: str, digest: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "digest": dict(digest)} if digest else {"name": name}


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def read_statement(data: bytes) -> dict[str, Any]:
    """The statement of a release. Raises ValueError, with what is wrong, unless it is one of rwkvflow's."""
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    try:
        content = json.loads(data)
        json.dumps(content, ensure_ascii=False).encode()  # half a character is JSON, and no text for protobuf
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        Statement.copy_from_pb(json_format.ParseDict(content, Message())).validate()
        if content.get("predicateType") != PREDICATE_TYPE:
            raise ValueError(f"its predicate is {content.get('predicateType')!r}, not {PREDICATE_TYPE}")
        json_format.ParseDict(content["predicate"], provenance_pb2.Provenance())
        build_type = content["predicate"]["buildDefinition"]["buildType"]
    except (UnicodeError, RecursionError, json_format.ParseError, KeyError, TypeError) as error:
        raise ValueError(f"it is no in-toto statement with SLSA provenance ({error})") from error
    _check_shape(content)
    if build_type != BUILD_TYPE:
        raise ValueError(f"its build type is {build_type!r}, not {BUILD_TYPE}")
    return content


def _check_shape(content: Mapping[str, Any]) -> None:
    """Raises ValueError where a list or a digest is none: protobuf takes null for an absent one, and [] for {}."""
    predicate = content["predicate"]
    if not all(isinstance(subject, dict) and isinstance(subject.get("name"), str) for subject in content["subject"]):
        raise ValueError("its subject holds something that has no name")
    ran = predicate.get("runDetails")
    if not isinstance(ran, dict):
        raise ValueError("it does not say how it was made")
    lists = {
        "subject": content["subject"],
        "resolvedDependencies": predicate["buildDefinition"].get("resolvedDependencies", []),
        "byproducts": ran.get("byproducts", []),
    }
    for name, items in lists.items():
        if not isinstance(items, list):
            raise ValueError(f"its {name} is no list")
        for item in items:
            digest = item.get("digest", {}) if isinstance(item, dict) else None
            if not isinstance(digest, dict) or not isinstance(item.get("name", ""), str):
                raise ValueError(f"its {name} holds something that has no name and no digests")
            if not all(isinstance(value, str) for value in digest.values()):
                raise ValueError(f"its {name} holds a digest that is no text")


def stated_name(data: bytes) -> str | None:
    """What the statement of a release calls it; None where it is no such statement."""
    try:
        external = read_statement(data)["predicate"]["buildDefinition"].get("externalParameters")
    except ValueError:
        return None
    name = external.get("name") if isinstance(external, dict) else None
    return name if isinstance(name, str) else None


def dependencies(statement: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name → digests of everything that the statement says went in."""
    listed = statement["predicate"]["buildDefinition"].get("resolvedDependencies", [])
    return {item.get("name", ""): dict(item.get("digest", {})) for item in listed}
