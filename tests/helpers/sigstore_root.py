"""A Sigstore of one's own: a certificate authority, a log of certificates and a log of signatures, all in memory.

What it signs is what the public instance would have signed, and its trusted root says so. Certificates are those of
Fulcio (the identity in the alternative name, the issuer in an extension), log entries those of Rekor (kind dsse).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from rwkvflow.release.provenance.attestation import bundle
from rwkvflow.release.provenance.signature import envelope_bytes

DER = serialization.Encoding.DER
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SHA256 = ec.ECDSA(hashes.SHA256())
ORIGIN = "rekor.test - 1"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _new() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class SigstoreOfOnesOwn:
    """The keys of its three parts."""

    authority: ec.EllipticCurvePrivateKey = field(default_factory=_new)
    certificates: ec.EllipticCurvePrivateKey = field(default_factory=_new)
    signatures: ec.EllipticCurvePrivateKey = field(default_factory=_new)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio.test")])
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        ends = {"encipher_only": False, "decipher_only": False}
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.authority.public_key())
            .serial_number(1)
            .not_valid_before(NOW - timedelta(days=365))
            .not_valid_after(NOW + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage, **ends),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def trusted_root(self, path: Path) -> Path:
        """Its trusted root, as a file."""
        start = {"start": (NOW - timedelta(days=365)).isoformat().replace("+00:00", "Z")}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, Any]:
            kind = {"rawBytes": _b64(_spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": start}
            name = {"keyId": _b64(hashlib.sha256(_spki(key)).digest())}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": kind, "logId": name}

        authority = {
            "subject": {"organization": "test", "commonName": "fulcio.test"},
            "uri": "https://fulcio.test",
            "certChain": {"certificates": [{"rawBytes": _b64(self.root.public_bytes(DER))}]},
            "validFor": start,
        }
        content = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.signatures, "https://rekor.test")],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.certificates, "https://ctfe.test")],
            "timestampAuthorities": [],
        }
        path.write_text(json.dumps(content))
        return path

    def sign(self, payload: bytes, identity: str, issuer: str) -> bytes:
        """A bundle of a statement, signed by an identity that this issuer vouches for."""
        key = _new()
        certificate = self._certificate(key, identity, issuer)
        signature = key.sign(envelope_bytes(payload), SHA256)
        entry = self._entry(payload, signature, certificate)
        raw = _b64(certificate.public_bytes(DER))
        return bundle(payload, signature, {"certificate": {"rawBytes": raw}, "tlogEntries": [entry]})

    def _certificate(self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str) -> x509.Certificate:
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        more = {"key_cert_sign": False, "crl_sign": False, "encipher_only": False, "decipher_only": False}
        text = issuer.encode()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(minutes=1))
            .not_valid_after(NOW + timedelta(minutes=9))
            .add_extension(x509.KeyUsage(digital_signature=True, **usage, **more), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), text), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(
                    ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c" + bytes([len(text)]) + text
                ),
                critical=False,
            )
        )
        before = builder.sign(self.authority, hashes.SHA256())  # what the log signs holds no word of the log
        listed = self._timestamp(before.tbs_certificate_bytes)
        wrapped = b"\x04" + bytes([len(listed)]) if len(listed) < 128 else b"\x04\x81" + bytes([len(listed)])
        return builder.add_extension(
            x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), wrapped + listed), critical=False
        ).sign(self.authority, hashes.SHA256())

    def _timestamp(self, tbs: bytes) -> bytes:
        """A list of one signed certificate timestamp (RFC 6962, 3.2 and 3.3)."""
        at = int(NOW.timestamp() * 1000)
        issuer = hashlib.sha256(_spki(self.authority)).digest()
        signed = struct.pack(">BBQH", 0, 0, at, 1) + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = self.certificates.sign(signed, SHA256)
        log = hashlib.sha256(_spki(self.certificates)).digest()
        one = struct.pack(">B32sQHBBH", 0, log, at, 0, 4, 3, len(signature)) + signature
        return struct.pack(">HH", len(one) + 2, len(one)) + one

    def _entry(self, payload: bytes, signature: bytes, certificate: x509.Certificate) -> dict[str, Any]:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        body = _canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(payload + signature).hexdigest()},
                    "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                    "signatures": [{"signature": _b64(signature), "verifier": _b64(pem)}],
                },
            }
        )
        log, at = hashlib.sha256(_spki(self.signatures)).digest(), int(NOW.timestamp())
        promise = _canonical({"body": _b64(body), "integratedTime": at, "logID": log.hex(), "logIndex": 0})
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"{ORIGIN}\n1\n{_b64(root)}\n"
        line = f"— {ORIGIN.split()[0]} {_b64(log[:4] + self.signatures.sign(note.encode(), SHA256))}\n"
        return {
            "logIndex": "0",
            "logId": {"keyId": _b64(log)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(at),
            "inclusionPromise": {"signedEntryTimestamp": _b64(self.signatures.sign(promise, SHA256))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _b64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n{line}"},
            },
            "canonicalizedBody": _b64(body),
        }
