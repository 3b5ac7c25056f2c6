"""Who else says that a release is what its recipe makes: rebuilds that were attested, from wherever they can be had.

Beside the release (`.attestations/`), in a file or a folder, in a repository of the hub (`hf://owner/name`), or
attached to an image of the release in a registry (`oci://registry/name:tag`, its referrers). Where they come from says
nothing: each is checked against the keys and identities that the reader trusts.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.app.rebuild import Comparison
from rwkvflow.base.errors import PublishError, UsageError
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.outputs import write_text
from rwkvflow.release.names import ATTESTATIONS, PROVENANCE
from rwkvflow.release.provenance.attestation import (
    BUNDLE_TYPE,
    MOST_BYTES,
    SUFFIX,
    Attestation,
    AttestationProblem,
    Circumstances,
    check_subject,
    hint,
    in_words,
    load_public,
    read_attestation,
    rebuild_statement,
    rebuildable,
    sign_rebuild,
    signed_with,
    statement_of,
)
from rwkvflow.release.provenance.keyless import Identity, KeylessVerifier
from rwkvflow.release.provenance.signature import private_key
from rwkvflow.release.provenance.statement import read_statement
from rwkvflow.worker.smoke.judge import processor

if TYPE_CHECKING:
    from rwkvflow.release.provenance.attestation import AnyPublicKey

MOST = 1000  # attestations of one place; anybody may attach some


@dataclass(frozen=True)
class Rebuilders:
    """Whom the reader trusts to have made a release again, by name: keys, and identities of an OpenID provider."""

    keys: Mapping[str, AnyPublicKey] = field(default_factory=dict)
    identities: tuple[Identity, ...] = ()
    trust_root: Path | None = None  # of Sigstore; None: the public instance's

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order given."""
        return (*self.keys, *(identity.name for identity in self.identities))


@dataclass
class Vouched:
    """Who vouches, with the words of each, and what was found that does not count."""

    by: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def problem(self, wanted: int, rebuilders: Rebuilders) -> str | None:
        """Why these are too few, in words."""
        if len(self.by) >= wanted:
            return None
        missing = [name for name in rebuilders.names if name not in self.by]
        said = f"{', '.join(sorted(self.by)) or 'nobody'} vouches for it"
        lacking = f"nothing that counts came from {', '.join(missing)}" if missing else "nobody else is trusted"
        return f"rebuilds by trusted people: {wanted} asked for, {len(self.by)} here: {said}; {lacking}"


def rebuilders_of(
    named: Sequence[str], identities: Sequence[tuple[str, str]], trust_root: Path | None = None
) -> Rebuilders:
    """NAME=KEY.pub, and identities with their issuers. Raises UsageError; two names for one key count as one holder."""
    keys: dict[str, AnyPublicKey] = {}
    seen: dict[str, str] = {}
    for text in named:
        name, equals, path = text.partition("=")
        key = load_public(Path(path if equals else text))
        name = name if equals else Path(text).stem
        if (other := seen.setdefault(hint(key), name)) != name:
            raise UsageError(f"--rebuilder: {name} and {other} have the same key", remedy="name it once")
        if name in keys and hint(keys[name]) != hint(key):
            raise UsageError(f"--rebuilder: two keys are called {name}", remedy="NAME=KEY.pub gives each a name")
        keys[name] = key
    return Rebuilders(keys, tuple(Identity(who, issuer) for who, issuer in identities), trust_root)


def vouched(release: Path, sources: Iterable[str], rebuilders: Rebuilders) -> Vouched:
    """Look through all attestations of a release that was checked. Raises UsageError, FetchError, PublishError."""
    statement = read_statement((release / PROVENANCE).read_bytes())
    provenance = file_digest(release / PROVENANCE).removeprefix("sha256:")
    found = Vouched()
    keyless = KeylessVerifier(rebuilders.trust_root) if rebuilders.identities else None
    for place, data in _all(release, sources):
        try:
            attestation = read_attestation(data)
            who = _signer(attestation, rebuilders, keyless)
            said = statement_of(attestation)
            check_subject(said, statement, provenance)
        except AttestationProblem as problem:
            found.notes.append(f"{place}: {problem}; it does not count")
        else:
            found.by.setdefault(who, in_words(said))
    return found


def _signer(attestation: Attestation, rebuilders: Rebuilders, keyless: KeylessVerifier | None) -> str:
    for name, key in rebuilders.keys.items():
        if signed_with(attestation, key):
            return name
    if attestation.keyless and keyless is not None:
        return keyless.signer(attestation, rebuilders.identities)
    by = f"a key with the SHA-256 {attestation.hint[:64]}" if attestation.hint else "somebody"
    raise AttestationProblem(f"it is signed by {by}, whom you do not trust")


def _all(release: Path, sources: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(where from, bytes) of each attestation."""
    if (beside := release / ATTESTATIONS).is_dir():
        yield from _folder(beside, ATTESTATIONS)
    for source in sources:
        if source.startswith("oci://"):
            from rwkvflow.net.oci_referrers import attached

            yield from attached(source, MOST)
        elif source.startswith("hf://"):
            from rwkvflow.net.snapshot import fetch_repository

            with tempfile.TemporaryDirectory(prefix="rwkvflow-attestations-") as folder:
                fetch_repository(source, Path(folder))
                yield from _folder(Path(folder), source)
        elif (path := Path(source)).is_dir():
            yield from _folder(path, source)
        elif path.is_file():
            yield source, _read(path)
        else:
            raise UsageError(
                f"--attestations: there is no {source}", remedy="name a file, a folder, hf://owner/name or oci://…"
            )


def _folder(folder: Path, shown: str) -> Iterator[tuple[str, bytes]]:
    paths = [path for path in sorted(folder.rglob("*.json")) if path.is_file() and not path.is_symlink()]
    for path in paths[:MOST]:
        yield f"{shown}/{path.relative_to(folder).as_posix()}", _read(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def attest(release: Path, compared: Comparison, key: Path, *, who: str = "", output: Path | None = None) -> Path:
    """Write a signed statement that a release was made again with equal bytes; where it is. Raises PublishError."""
    statement = read_statement((release / PROVENANCE).read_bytes())
    lacking = sorted(rebuildable(statement).keys() - set(compared.same))
    if compared.problems or lacking:
        raise PublishError(f"not all of {release} was made again with equal bytes: {', '.join(lacking[:5])}")
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(told), UTC) if told.isdigit() and len(told) < 12 else datetime.now(UTC)
    where = Circumstances(compared.sandbox, platform.machine(), processor(), now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    mine = hint(private_key(key, ed25519=True).public_key())
    provenance = file_digest(release / PROVENANCE).removeprefix("sha256:")
    payload = rebuild_statement(statement, provenance, who or f"sha256:{mine}", compared.notes, where)
    name = str(json.loads(payload)["predicate"]["release"]) or "release"
    path = output or Path(f"{name}.{mine[:12]}{SUFFIX}")
    write_text(path, sign_rebuild(payload, key).decode(), [key], force=False)
    return path


def offers(name: str, file: Path, target: str) -> list[str]:
    """How to give an attestation to whoever published a release."""
    lines = []
    if target.startswith("hf://"):
        repository = target.removeprefix("hf://").partition("@")[0]
        lines.append(
            f"hf upload {repository} {file} {ATTESTATIONS}/{file.name} --create-pr   # the publisher merges it"
        )
    lines += [
        f"the publisher puts it into {ATTESTATIONS}/ of the release, which no list of the release counts",
        f"oras attach --artifact-type {BUNDLE_TYPE} REGISTRY/{name}:TAG {file.name}:{BUNDLE_TYPE}   # or --attach",
        f"or publish it yourself, for `rwkvflow verify --attestations {file.name}`",
    ]
    return lines
