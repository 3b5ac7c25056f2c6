"""How the formats of a release are run: what each format's card says of its files, one part of the page a title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvflow.release.artifacts import Row
from rwkvflow.release.names import RECIPE
from rwkvflow.worker.formats import FORMATS, cards


@dataclass(frozen=True)
class RuntimeSection:
    """A part of the page: a heading, a sentence, what to install, and the commands for each of its files."""

    title: str
    text: str
    setup: tuple[str, ...]
    commands: tuple[tuple[str, tuple[str, ...]], ...]  # (path, its commands)


def runtimes(rows: Sequence[Row]) -> list[RuntimeSection]:
    """What to say of these files, in the order of the cards; a format without a card is described by its consumer."""
    told: dict[str, list[tuple[cards.Card, Row]]] = {}
    left = []
    for row in rows:
        item = FORMATS.get(row.format)
        card = None if item is None else cards.card_of(item, _version(row))
        if card is None:
            left.append(row)
        else:
            told.setdefault(card.title, []).append((card, row))
    found = []
    for title, listed in sorted(told.items(), key=lambda entry: (entry[1][0][0].order, entry[0])):
        first = listed[0][0]
        setup = tuple(line.replace(cards.RECIPE, RECIPE) for line in first.setup)
        commands = tuple((row.path, card.commands(_file(row))) for card, row in listed)
        found.append(RuntimeSection(title, first.text, setup, commands))
    for consumer in sorted({str(row.smoke.get("consumer", "")) for row in left}):
        names = ", ".join(sorted({row.format for row in left if str(row.smoke.get("consumer", "")) == consumer}))
        found.append(RuntimeSection(names, f"Run and compared with {consumer}." if consumer else "", (), ()))
    return found


def _version(row: Row) -> str:
    return str((row.facts.get("architecture") or {}).get("version") or "")


def _file(row: Row) -> cards.CardFile:
    not_for = row.smoke.get("not_for")
    return cards.CardFile(row.path, row.files, _version(row), not_for if isinstance(not_for, Mapping) else {})
