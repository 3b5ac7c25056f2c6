"""What the README of a release says of a format: how its files are run, as commands that can be pasted into a shell.

A format names the module of its card (Format.card), whose function `card(item, version)` gives a Card. Commands are run
in the folder of the release.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rwkvflow.worker.formats.base import Format

RECIPE = "{recipe}"  # in `setup`: stands for the recipe's file of the release
ENGINE = f'ENGINE="$(rwkvflow engine build {RECIPE} --print-path)"'
LAST = 1000


@dataclass(frozen=True)
class CardFile:
    """An artifact on a card.

    path     of the file or folder, in the release
    files    all files of it
    version  of the model, as Architecture has it; "" where it is not known
    not_for  runtimes that the smoke stage found not to run this very file, and why
    """

    path: str
    files: tuple[str, ...] = ()
    version: str = ""
    not_for: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What is said of all formats with the same title: a sentence, what to install, and the commands for each file.

    `order` is the place on the page, the lowest first; those that name none follow in the order of their titles.
    """

    title: str
    text: str
    setup: tuple[str, ...]
    commands: Callable[[CardFile], tuple[str, ...]]
    order: int = LAST


def card_of(item: Format, version: str) -> Card | None:
    """The card of a format for models of a version ("" where it is not known); None where it names none."""
    if not item.card:
        return None
    make: Callable[[Format, str], Card] = importlib.import_module(item.card).card
    return make(item, version)


def python_command(code: str) -> str:
    """A line of the shell that runs several lines of Python."""
    return f"python -c {shlex.quote(code)}"


def rwkv_package(file: CardFile, pth: str, strategy: str) -> str:
    """The line that runs a .pth with the author's package, which wants a path without its .pth."""
    variables = "RWKV_JIT_ON=0 RWKV_V7_ON=1" if file.version.startswith("7") else "RWKV_JIT_ON=0"
    use = f"from rwkv.model import RWKV; print(RWKV({pth!r}, {strategy!r}).forward([1, 2, 3], None)[0])"
    return f'{variables} python -c "{use}"'
