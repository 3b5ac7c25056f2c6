"""Modelfiles as Ollama's parser (parser/parser.go) reads them: a checker of its rules, not of ours.

A command is letters, then spaces, then its value up to the end of the line. A value in three quotes or one goes on over
lines to the same again, and is taken as it is: nothing is an escape. Of the rest, what is not printable is dropped.
"""

from __future__ import annotations

import re

_NAMES = "from license template system adapter draft renderer parser parameter message requires"
COMMANDS = frozenset(_NAMES.split())
_OPTIONS = """
num_ctx num_batch num_gpu main_gpu use_mmap num_thread draft_num_predict num_keep seed num_predict top_k top_p min_p
typical_p repeat_last_n temperature repeat_penalty presence_penalty frequency_penalty stop
"""
PARAMETERS = frozenset(_OPTIONS.split())
_VALUE = r'"""(?P<long>.*?)"""|"(?P<quoted>[^"\n]*)"|(?P<bare>[^\n]*)'
_COMMAND = re.compile(rf"(?P<name>[A-Za-z]+)[ \t]+(?:{_VALUE})[ \t]*(?:\n|$)", re.DOTALL)


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) in order; of parameters the command is "parameter NAME". Raises ValueError as Ollama refuses."""
    found, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = text.index("\n", at) if "\n" in text[at:] else len(text)
        else:
            match = _COMMAND.match(text, at)
            if match is None or (name := match["name"].lower()) not in COMMANDS:
                raise ValueError(f"no command: {text[at : at + 40]!r}")
            value = match["long"] if match["long"] is not None else match["quoted"]
            value = match["bare"].strip() if value is None else value
            if name == "parameter":
                key, _, rest = value.partition(" ") if match["bare"] else ("", "", "")
                raise_unless(key in PARAMETERS, f"unknown parameter {key!r}")
                start = match.start("bare") + len(key) + 1
                name, (value, end) = f"parameter {key}", parameter(text, start)
                raise_unless(bool(rest), "no value")
                found.append((name, value))
                at = end
                continue
            found.append((name, value))
            at = match.end()
    raise_unless(any(name == "from" for name, _ in found), "no FROM line")
    return found


def parameter(text: str, at: int) -> tuple[str, int]:
    """The value of a parameter that begins at `at`, and where it ends."""
    match = re.compile(rf"[ \t]*(?:{_VALUE})[ \t]*(?:\n|$)", re.DOTALL).match(text, at)
    if match is None:
        raise ValueError("a quote that does not end")
    value = match["long"] if match["long"] is not None else match["quoted"]
    return match["bare"].strip() if value is None else value, match.end()


def raise_unless(good: bool, why: str) -> None:
    """Raises ValueError."""
    if not good:
        raise ValueError(why)
