"""Signatures in the format of OpenSSF's model-signing, with a key on an elliptic curve. Works offline.

model.sig is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists every other file of the release
with its sha256. The package reads it (`model_signing verify key`), and so does `rwkvflow verify --key`. We write the
bundle ourselves, because the package draws a random number for each signature: ours follow from content and key
(RFC 6979), so that publishing the same release again changes nothing. The package then has to accept what we wrote.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rwkvflow.base.dsse import pre_authentication
from rwkvflow.base.errors import EnvironmentMissing, PublishError
from rwkvflow.release.names import NOT_OF_A_RELEASE, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSWORD = "RWKVFLOW_SIGN_PASSWORD"  # noqa: S105 - the name of the environment variable
MAKE_A_KEY = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out sign.key"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class SignatureProblem(Exception):
    """Why a signature does not hold, in words."""


def fingerprint(key: Path) -> str:
    """Hex sha256 of the PEM public key that belongs to a private key; what model-signing calls its hint."""
    return _hint(_private(key).public_key())


def sign(name: str, digests: Mapping[str, str], key: Path) -> bytes:
    """model.sig for a release. `digests` maps the path of every file but it to a hex sha256.

    Raises PublishError where the key cannot be used, EnvironmentMissing where the packages are not installed.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    private = _private(key)
    payload = _payload(name, digests)
    algorithm = getattr(hashes, _CURVES[private.curve.name])()
    signature = private.sign(envelope_bytes(payload), ec.ECDSA(algorithm, deterministic_signing=True))
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": _hint(private.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
        },
    }
    data = (json.dumps(bundle, sort_keys=True) + "\n").encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key.pub").write_bytes(public_pem(private.public_key()))
        try:
            check_signature(data, Path(folder) / "key.pub", digests)
        except SignatureProblem as error:
            raise PublishError(f"model-signing does not accept the signature that was made: {error}") from error
    return data


def check_signature(data: bytes, public_key: Path, digests: Mapping[str, str]) -> None:
    """Raise SignatureProblem unless `data` is a signature of exactly these files by this key.

    `digests` maps the path of every file but the signature to its hex sha256, as just computed. Raises
    EnvironmentMissing where model-signing is not installed.
    """
    verifying, _ = packages()
    known = _Known(digests)
    if not public_key.is_file():
        raise SignatureProblem(f"there is no public key {public_key}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise SignatureProblem(f"{public_key.name} is no public key on a curve that model-signing knows") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE
        path.write_bytes(data)
        try:
            config.set_hashing_config(known).verify(Path(folder), path)
        except Exception as error:  # the package raises whatever its parsers and cryptography raise
            raise SignatureProblem(_in_words(error)) from error


def _in_words(error: Exception) -> str:
    text = str(error)
    if type(error).__name__ == "InvalidSignature":
        return "it was changed, or was not made with this key"
    if "Key mismatch" in text:
        return "it was made with another key"
    if text.startswith("Signature mismatch: "):
        return "the files are not those that were signed"  # the other lists tell which
    return f"it cannot be read ({type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'})"


class _Known:
    """Stands in for model_signing.hashing.Config: the files were hashed already, and models are large."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self.digests = digests

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """What is ignored was left out before."""

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """The manifest of the files."""
        from model_signing import manifest
        from model_signing._hashing.hashing import Digest

        kind = manifest.SerializationType.from_args(_serialization())
        items = [kind.new_item(path, Digest("sha256", bytes.fromhex(sha))) for path, sha in self.digests.items()]
        return manifest.Manifest("release", items, kind)


def _serialization() -> dict[str, Any]:
    ignored = sorted({SIGNATURE, *NOT_OF_A_RELEASE})
    return {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ignored}


def _payload(name: str, digests: Mapping[str, str]) -> bytes:
    ordered = sorted(digests.items(), key=lambda item: PurePosixPath(item[0]))
    root = hashlib.sha256(b"".join(bytes.fromhex(sha256) for _, sha256 in ordered)).hexdigest()
    content = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": _serialization(),
            "resources": [{"name": path, "algorithm": "sha256", "digest": sha256} for path, sha256 in ordered],
        },
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()


def envelope_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed of an envelope."""
    return pre_authentication(PAYLOAD_TYPE, payload)


def _private(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    key = private_key(path)
    assert isinstance(key, EllipticCurvePrivateKey)  # noqa: S101 - no other is asked for
    return key


def private_key(path: Path, *, ed25519: bool = False) -> EllipticCurvePrivateKey | Ed25519PrivateKey:
    """A private key's PEM file: on a curve of NIST's, or ed25519 where that will do too. Raises PublishError."""
    packages()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    password = os.environ.get(PASSWORD)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PublishError(f"the key cannot be read: {path.name}: {error.strerror}", remedy=MAKE_A_KEY) from error
    try:
        key = serialization.load_pem_private_key(data, password.encode() if password else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        wanted = "" if password else f"; a password goes into {PASSWORD}"
        raise PublishError(f"{path.name} is no private key that can be used{wanted}", remedy=MAKE_A_KEY) from error
    if isinstance(key, Ed25519PrivateKey) and ed25519:
        return key
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise PublishError(f"{path.name} is no key on the curve P-256, P-384 or P-521", remedy=MAKE_A_KEY)
    return key


def public_pem(key: EllipticCurvePublicKey | Ed25519PublicKey) -> bytes:
    """A public key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _hint(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(public_pem(key)).hexdigest()


def packages() -> tuple[Any, Any]:
    """model_signing.verifying and cryptography. Raises EnvironmentMissing where one is not installed."""
    try:
        import cryptography
        from model_signing import verifying
    except ImportError as error:
        raise EnvironmentMissing(
            f"signatures need a package that is not installed: {error.name}", remedy="pip install 'rwkvflow[sign]'"
        ) from error
    return verifying, cryptography
