"""Whose records of a remote store count: keys that a user trusts, each up to a date, if it was revoked.

They come from the command line, from the user's workflow, and from `trust.json` in the user's own store; a recipe,
which may be anybody's, has no say. Where several name a key, the earliest date counts, so that a revocation cannot be
undone by a document that does not know of it.

A date is held against the time that a signature names, and against the time that the store says the record was
written, where it says one: who has a key can name any time, but not the server's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rwkvflow.base.errors import StoreError, UsageError
from rwkvflow.base.files import read_json, write_json
from rwkvflow.store.keys import TIME, is_signed, packages, parse_public
from rwkvflow.store.record import Record

FILE = "trust.json"
NEVER = "1970-01-01T00:00:00Z"  # what a key signed before this: nothing


@dataclass(frozen=True)
class TrustedKey:
    """A public key, whose it is, and the time (UTC, as TIME) from which on what it signs counts for nothing."""

    key: str
    name: str = ""
    before: str = ""
    why: str = ""


class Trust:
    """The keys that count; none: everybody's records do, signed or not."""

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        self.keys: dict[str, TrustedKey] = {}
        for key in keys:
            known = self.keys.get(key.key)
            self.keys[key.key] = key if known is None else _stricter(known, key)
        if self.keys:
            packages()

    def __bool__(self) -> bool:
        return bool(self.keys)

    def problem(self, key: str, record: Record) -> str | None:
        """Why a step's record does not count, in words; None where it does."""
        if not self.keys:
            return None
        signature = record.signature
        if signature is None:
            return "it is not signed"
        known = self.keys.get(signature.by)
        if known is None:
            return f"it is signed by {signature.by[:60]}, whom you do not trust"
        if not is_signed(key, record):
            return f"it names {known.name or signature.by}, who did not sign it"
        if known.before and max(signature.at, signature.kept) >= known.before:
            return f"it was signed by {known.name or signature.by} when that key was revoked"
        return None


def _stricter(one: TrustedKey, other: TrustedKey) -> TrustedKey:
    """What both say of a key."""
    dates = [item for item in (one, other) if item.before]
    first = min(dates, key=lambda item: item.before) if dates else one
    return TrustedKey(one.key, one.name or other.name, first.before, first.why)


def kept_keys(root: Path) -> list[TrustedKey]:
    """The keys that the store at `root` keeps, by name."""
    path = root / FILE
    if not path.exists():
        return []
    try:
        rows = (read_json(path) or {})["keys"]
        found = [TrustedKey(**{str(name): str(value) for name, value in row.items()}) for row in rows]
    except (KeyError, TypeError, AttributeError):  # to go on would be to trust everybody
        raise StoreError(
            f"{path}, which says whom you trust, is damaged", remedy="mend it, or remove it and trust the keys again"
        ) from None
    return sorted(found, key=lambda key: (key.name, key.key))


def _keep(root: Path, keys: Mapping[str, TrustedKey]) -> None:
    write_json(root / FILE, {"keys": [asdict(keys[key]) for key in sorted(keys)]})


def add(root: Path, said: str, name: str = "") -> TrustedKey:
    """Trust a key from now on. Raises UsageError for one that was revoked, and for a name that another key has."""
    key = parse_public(said)
    keys = {item.key: item for item in kept_keys(root)}
    if key in keys and keys[key].before:
        raise UsageError(f"{key} was revoked; what it signed before {keys[key].before} counts", remedy="use a new key")
    if name and any(item.name == name and item.key != key and not item.before for item in keys.values()):
        raise UsageError(f"another key is {name}'s", remedy=f"revoke that one first: rwkvflow cache revoke {name}")
    keys[key] = TrustedKey(key, name or (keys[key].name if key in keys else ""))
    _keep(root, keys)
    return keys[key]


def revoke(root: Path, said: str, before: str, why: str = "") -> TrustedKey:
    """Let a key count only for what it signed before a time; `said` is the key or the name that it was given.

    Of a name that several keys had, the one that is trusted is meant, else the last. Raises UsageError for other texts.
    """
    keys = {item.key: item for item in kept_keys(root)}
    named = [item.key for item in sorted(keys.values(), key=lambda item: item.before) if item.name == said]
    key = next((one for one in named if not keys[one].before), named[-1] if named else None)
    if key is None:
        try:
            key = parse_public(said)
        except UsageError as error:
            names = ", ".join(sorted({item.name for item in keys.values() if item.name})) or "none"
            raise UsageError(
                f"{error.message}, nor the name of one that is kept: {names}", remedy=error.remedy
            ) from None
    known = keys.get(key, TrustedKey(key))
    keys[key] = _stricter(known, TrustedKey(key, known.name, before, why))
    _keep(root, keys)
    return keys[key]


def date(text: str) -> str:
    """A day or time of the user's (ISO 8601, UTC where it names no zone) as TIME has it. Raises UsageError."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!a} is no date", remedy="write it as 2026-11-30 or 2026-11-30T12:00:00Z") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).strftime(TIME)
