"""Keys that sign the records of a remote store: ed25519, public ones as text ("ed25519:" and base64 of 32 bytes).

What is signed is a record as it was understood, in one encoding, with the key that its step has, the time, and who
signs: nothing that a reader uses is outside of the signature, and a signature fits no other step. The encoding around
it is DSSE's, so that a signature of one kind of thing is none of another.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.dsse import pre_authentication
from rwkvflow.base.errors import EnvironmentMissing, StoreError, UsageError
from rwkvflow.base.files import clear_errors
from rwkvflow.store.record import Record, RecordSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX = "ed25519:"
KIND = "application/vnd.rwkvflow.record+json"
PASSWORD = "RWKVFLOW_STORE_KEY_PASSWORD"  # noqa: S105 - the name of the environment variable
MAKE_A_KEY = "make one with: rwkvflow cache keys --new store.key"
TIME = "%Y-%m-%dT%H:%M:%SZ"


class StoreSigner:
    """A private key that signs records."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key = public_text(key.public_key().public_bytes_raw())

    def sign(self, key: str, record: Record) -> RecordSignature:
        """A signature of a step's record, made now."""
        at = datetime.now(UTC).strftime(TIME)
        value = self._key.sign(_payload(key, record, self.key, at))
        return RecordSignature(self.key, at, base64.b64encode(value).decode())


def is_signed(key: str, record: Record) -> bool:
    """Whether a record is signed by the key that it names, whoever that is."""
    packages()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = record.signature
    if signature is None:
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(_raw(signature.by))
        value = base64.b64decode(signature.value, validate=True)
        public.verify(value, _payload(key, record, signature.by, signature.at))
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _payload(key: str, record: Record, by: str, at: str) -> bytes:
    said = {
        "key": key,
        "step": record.step,
        "outputs": {name: asdict(output) for name, output in record.outputs.items()},
        "seconds": record.seconds,
        "notes": record.notes,
        "by": by,
        "at": at,
    }
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return pre_authentication(KIND, text)


def public_text(raw: bytes) -> str:
    """A public key as text."""
    return PREFIX + base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    """The 32 bytes of a public key's text; raises ValueError for anything else."""
    raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    if not text.startswith(PREFIX) or len(raw) != 32 or public_text(raw) != text:
        raise ValueError("not the text of an ed25519 key")
    return raw


NAME_A_KEY = "give its text, ed25519:…, or its PEM file; `rwkvflow cache keys --of FILE` prints that of a private key"


def parse_public(said: str) -> str:
    """The text of a public key that is given as text or as a PEM file. Raises UsageError for all else."""
    text = said.strip()
    try:
        if not text.startswith(PREFIX) and Path(text).is_file():
            return _from_pem(Path(text))
        _raw(text)
    except (ValueError, OSError, binascii.Error):  # a text may be too long, or too odd, for the name of a file
        raise UsageError(
            f"{text[:80]!a} is no public key of a store",
            remedy=NAME_A_KEY,
        ) from None
    return text


def _from_pem(path: Path) -> str:
    packages()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key: Any = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UsageError(f"the key cannot be read: {path}: {error.strerror}", remedy=NAME_A_KEY) from None
    except ValueError:  # what the library says of it helps nobody
        raise UsageError(f"{path} is no public key", remedy=NAME_A_KEY) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is no ed25519 key", remedy=MAKE_A_KEY)
    return public_text(key.public_bytes_raw())


def load_signer(path: Path) -> StoreSigner:
    """The signer of a private key's PEM file. Raises UsageError where it cannot be used."""
    packages()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    password = os.environ.get(PASSWORD)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except OSError as error:
        raise UsageError(f"the key of the store cannot be read: {path}: {error.strerror}", remedy=MAKE_A_KEY) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        wanted = "" if password else f"; a password goes into {PASSWORD}"
        raise UsageError(f"{path} is no private key that can be used{wanted}", remedy=MAKE_A_KEY) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is no ed25519 key", remedy=MAKE_A_KEY)
    return StoreSigner(key)


def new_key(path: Path) -> StoreSigner:
    """Make a private key at a new file that only its owner may read. Raises StoreError where there is a file."""
    packages()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    password = os.environ.get(PASSWORD)
    key = Ed25519PrivateKey.generate()
    kept = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    try:
        with clear_errors(f"writing {path}"):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StoreError(f"{path} is there already", remedy="name another file; a key is never overwritten") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    return StoreSigner(key)


def packages() -> None:
    """Raises EnvironmentMissing where keys cannot be used here."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissing(
            "keys of a store need a package that is not installed: cryptography", remedy="pip install 'rwkvflow[sign]'"
        ) from error
