"""Attestations that an identity signed and no key: Sigstore bundles, checked against a trust root by its own package.

A certificate says which identity of which OpenID provider signed, and a transparency log when. Both, identity and
issuer, have to be those that the reader names, exactly: a certificate alone is one that anybody can get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.release.provenance.attestation import Attestation, AttestationProblem
from rwkvflow.release.provenance.signature import PAYLOAD_TYPE


@dataclass(frozen=True)
class Identity:
    """Somebody whom an OpenID provider knows: an address, or the URL of a workflow at a commit or tag."""

    name: str
    issuer: str


class KeylessVerifier:
    """Checks bundles against one trust root: a file's, or that of the public instance, which is fetched."""

    def __init__(self, trust_root: Path | None) -> None:
        try:
            from sigstore.models import TrustedRoot
            from sigstore.verify import Verifier
        except ImportError as error:
            raise EnvironmentMissing(
                f"signatures of identities need a package that is not installed: {error.name}",
                remedy="pip install 'rwkvflow[sign]'",
            ) from error
        self._verifier: Any = None
        try:
            if trust_root is None:
                self._verifier = Verifier.production()
            else:
                self._verifier = Verifier(trusted_root=TrustedRoot.from_file(str(trust_root)))
        except Exception as error:  # the package raises whatever its parsers and its network raise
            where = "Sigstore's public instance" if trust_root is None else str(trust_root)
            remedy = (
                "it is fetched from the internet; --trust-root names a file that was fetched before"
                if trust_root is None
                else "name a trusted_root.json of Sigstore"
            )
            raise UsageError(f"{where} gives no trust root: {_reason(error)}", remedy=remedy) from error

    def signer(self, attestation: Attestation, identities: Sequence[Identity]) -> str:
        """Which of these identities signed it. Raises AttestationProblem."""
        from sigstore.models import Bundle
        from sigstore.verify import policy

        try:
            bundle = Bundle.from_json(attestation.data)
        except Exception as error:
            raise AttestationProblem(f"it is no bundle that can be checked: {_reason(error)}") from None
        problem = "it is signed by somebody whom you do not trust"
        for identity in identities:
            wanted = policy.Identity(identity=identity.name, issuer=identity.issuer)
            try:
                kind, payload = self._verifier.verify_dsse(bundle, wanted)
            except Exception as error:
                problem = _reason(error)
                continue
            if kind != PAYLOAD_TYPE or payload != attestation.payload:
                raise AttestationProblem("what was signed is not what it holds")
            return identity.name
        raise AttestationProblem(problem)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
