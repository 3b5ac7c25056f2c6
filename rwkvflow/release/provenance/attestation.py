"""What somebody says who made a release again: an in-toto statement in a DSSE envelope, in a Sigstore bundle.

    subject        provenance.json, which names all that the release is, and every artifact that came out equal
    predicate      result "equal"; release; rebuilder (who, version); environment (sandbox, machine, processor);
                   notes, what differed and is no artifact; finishedOn

A key signs (P-256, P-384, P-521 or ed25519), or an identity of an OpenID provider, as Sigstore has it. That it was
signed says nothing: it counts where the key or the identity is one that the reader trusts, where its subject is this
very release, and where nothing is left out that a rebuild has to make.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow import __version__
from rwkvflow.base.errors import UsageError
from rwkvflow.release.names import ENGINE, PROVENANCE
from rwkvflow.release.provenance.signature import PAYLOAD_TYPE, envelope_bytes, private_key, public_pem
from rwkvflow.release.provenance.statement import HOME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    AnyPublicKey = EllipticCurvePublicKey | Ed25519PublicKey

REBUILD_TYPE = HOME + ":rebuild:v1"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SUFFIX = ".rebuild.sigstore.json"
MOST_BYTES = 16 << 20
HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class AttestationProblem(Exception):
    """Why an attestation does not count, in words."""


@dataclass(frozen=True)
class Circumstances:
    """Where a release was made again. `finished` is UTC, as 2026-11-30T12:00:00Z."""

    sandbox: str
    machine: str
    processor: str
    finished: str


def rebuildable(statement: Mapping[str, Any]) -> dict[str, str]:
    """Path → sha256 of what a rebuild has to make with the same bytes: artifacts, and engines for other machines."""
    found = {}
    for subject in statement["subject"]:
        parts = subject["name"].split("/")
        crossed = len(parts) > 3 and parts[0] == ENGINE and parts[2] in ("lib", "bin")
        if crossed or (isinstance(notes := subject.get("annotations"), dict) and notes.get("format")):
            found[subject["name"]] = str(subject["digest"].get("sha256"))
    return found


def rebuild_statement(
    statement: Mapping[str, Any], provenance: str, who: str, notes: Sequence[str], where: Circumstances
) -> bytes:
    """The statement about a release that was made again, all equal. `provenance` is the sha256 of provenance.json."""
    name = statement["predicate"]["buildDefinition"].get("externalParameters", {}).get("name", "")
    made = {PROVENANCE: provenance, **rebuildable(statement)}
    content = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path, "digest": {"sha256": made[path]}} for path in sorted(made)],
        "predicateType": REBUILD_TYPE,
        "predicate": {
            "result": "equal",
            "release": name,
            "rebuilder": {"id": who, "version": {"rwkvflow": __version__}},
            "environment": {"sandbox": where.sandbox, "machine": where.machine, "processor": where.processor},
            "notes": list(notes),
            "finishedOn": where.finished,
        },
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()


def sign_rebuild(payload: bytes, key: Path) -> bytes:
    """The bundle of a statement. Raises PublishError where the key cannot be used."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    private = private_key(key, ed25519=True)
    data = envelope_bytes(payload)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        algorithm = getattr(hashes, HASHES[private.curve.name])()
        signature = private.sign(data, ec.ECDSA(algorithm, deterministic_signing=True))
    else:
        signature = private.sign(data)
    return bundle(payload, signature, {"publicKey": {"hint": hint(private.public_key())}, "tlogEntries": []})


def bundle(payload: bytes, signature: bytes, material: Mapping[str, Any]) -> bytes:
    """A Sigstore bundle of a DSSE envelope."""
    content = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
        },
    }
    return (json.dumps(content, sort_keys=True) + "\n").encode()


PUBLIC_HALF = "name its PEM file, which the private key gives: openssl pkey -in ann.key -pubout -out ann.pub"


def hint(key: AnyPublicKey) -> str:
    """Hex sha256 of a public key's PEM."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def load_public(path: Path) -> AnyPublicKey:
    """A public key's PEM file. Raises UsageError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the public key cannot be read: {path}: {error.strerror}", remedy=PUBLIC_HALF) from None
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):  # what the library says of it helps nobody
        private = " but a private one" if b"PRIVATE KEY-----" in data else ""
        raise UsageError(f"{path} is no public key{private}", remedy=PUBLIC_HALF) from None
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name not in HASHES:
        raise UsageError(f"{path}: no key on the curve P-256, P-384 or P-521", remedy="take another key")
    if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        raise UsageError(f"{path} is no key that signs attestations", remedy="take P-256 or ed25519")
    return key


@dataclass(frozen=True)
class Attestation:
    """A bundle as it was read: nothing of it is checked."""

    data: bytes
    payload: bytes
    signatures: tuple[bytes, ...]
    hint: str  # what it says of its key; "" for none
    keyless: bool  # whether it has a certificate


def read_attestation(data: bytes) -> Attestation:
    """A Sigstore bundle, or a bare DSSE envelope. Raises AttestationProblem for all else."""
    try:
        content = json.loads(data)
        envelope = content.get("dsseEnvelope", content)
        material = content.get("verificationMaterial", {})
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise AttestationProblem(f"it holds {envelope['payloadType']!a:.60}, no in-toto statement")
        return Attestation(
            data,
            base64.b64decode(envelope["payload"], validate=True),
            tuple(base64.b64decode(item["sig"], validate=True) for item in envelope["signatures"]),
            str(material.get("publicKey", {}).get("hint", "")),
            "certificate" in material or "x509CertificateChain" in material,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise AttestationProblem(f"it is no signed statement ({type(error).__name__})") from None


def signed_with(attestation: Attestation, key: AnyPublicKey) -> bool:
    """Whether a key signed it, whatever it says of its key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    data = envelope_bytes(attestation.payload)
    for signature in attestation.signatures:
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(getattr(hashes, HASHES[key.curve.name])()))
            else:
                key.verify(signature, data)
            return True
        except InvalidSignature:
            continue
    return False


def statement_of(attestation: Attestation) -> dict[str, Any]:
    """The statement inside. Raises AttestationProblem unless it is one about a rebuild."""
    try:
        content = json.loads(attestation.payload)
        kind, predicate = content["predicateType"], content["predicate"]
        subjects = {str(item["name"]): str(item["digest"]["sha256"]) for item in content["subject"]}
        if content["_type"] != "https://in-toto.io/Statement/v1" or kind != REBUILD_TYPE:
            raise AttestationProblem(f"it is a statement of another kind, {kind!a:.80}")
        if len(subjects) != len(content["subject"]):
            raise AttestationProblem("it names a file twice")
        if not isinstance(predicate, dict):
            raise AttestationProblem("it says nothing")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise AttestationProblem(f"it is no in-toto statement ({type(error).__name__})") from None
    return {"subjects": subjects, "predicate": predicate}


def check_subject(said: Mapping[str, Any], statement: Mapping[str, Any], provenance: str) -> None:
    """Raises AttestationProblem unless it says that this release, all of it, was made again with equal bytes."""
    subjects = said["subjects"]
    if subjects.get(PROVENANCE) != provenance:
        raise AttestationProblem("it is about another release")
    if said["predicate"].get("result") != "equal":
        raise AttestationProblem("it does not say that the bytes were equal")
    for path, sha256 in sorted(rebuildable(statement).items()):
        if subjects.get(path) != sha256:
            raise AttestationProblem(f"it leaves out {path}" if path not in subjects else f"it is about another {path}")


def in_words(said: Mapping[str, Any]) -> str:
    """Where and when it was made, as the attestation says."""
    predicate = said["predicate"]
    place = predicate.get("environment")
    parts = (
        [str(place.get(name, "")) for name in ("processor", "machine", "sandbox")] if isinstance(place, dict) else []
    )
    parts.append(str(predicate.get("finishedOn", "")))
    return ", ".join(part[:100] for part in parts if part)
