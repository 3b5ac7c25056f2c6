"""How the formats of a release are run: what each format's card says of its files, one part of the page a title."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rwkvflow.documents.formats import family_of, runs_in_librwkv
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


@dataclass(frozen=True)
class FirstCommand:
    """What starts a conversation with a file: the program, and a line for a shell."""

    program: str
    line: str


WIDEST = 9.0  # bits a weight of a file that is named first: more tell few from a smaller one


def first_commands(rows: Sequence[Row], hub: str | None) -> list[FirstCommand]:
    """Of each model the file that loses least among those of few bits; of the first also in other programs."""
    found: list[FirstCommand] = []
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        mine = [row for row in rows if row.model == model and runs_in_librwkv(row.format)]
        ours = [row for row in mine if runs_in_librwkv(row.format, _version(row))]
        if row := _first([row for row in ours if row.files == (row.path,)]):
            found.append(FirstCommand("rwkvflow", f"rwkvflow chat {shlex.quote(row.path)}"))
        llama = [row for row in mine if family_of(row.format) == "gguf" and "llama.cpp" not in _file(row).not_for]
        if number == 0 and (row := _first(llama)):
            path = min(path for path in row.files if path.endswith(".gguf"))  # of several the first part
            found.append(FirstCommand("llama.cpp", f"llama-cli -m {shlex.quote(path)} --jinja -cnv"))
            if hub and (tag := ollama_tag(row)):
                found.append(FirstCommand("Ollama", f"ollama run hf.co/{hub}:{tag}"))
    return found


def ollama_tag(row: Row) -> str:
    """What Ollama calls a file of a repository by, as its name ends; "" for one that it does not find so."""
    kind = PurePosixPath(row.path).stem.removeprefix(f"{row.model}-")
    return "" if "-" in kind or row.files != (row.path,) else kind


def _first(rows: Sequence[Row]) -> Row | None:
    fit = [row for row in rows if row.bits is not None and row.bits < WIDEST] or list(rows)

    def loss(row: Row) -> float:
        told = row.smoke.get("kl_divergence")
        return math.inf if told is None else float(told)

    return min(fit, key=lambda row: (loss(row), row.size, row.path), default=None)


def _version(row: Row) -> str:
    return str((row.facts.get("architecture") or {}).get("version") or "")


def _file(row: Row) -> cards.CardFile:
    not_for = row.smoke.get("not_for")
    return cards.CardFile(row.path, row.files, _version(row), not_for if isinstance(not_for, Mapping) else {})
