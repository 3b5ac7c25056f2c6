"""Man pages of the commands, from what --help says: one for each, in the language of man(7)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import click

from rwkvflow import __version__


def pages(root: click.Command) -> Iterator[tuple[str, str]]:
    """(name, text) of the page of every command; a subcommand's is called rwkvflow-cache-gc."""

    def walk(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        inner = command.commands if isinstance(command, click.Group) else {}
        yield "-".join(names), _page(command, names, inner)
        for name in sorted(inner):
            yield from walk(inner[name], (*names, name))

    return walk(root, ("rwkvflow",))


def _page(command: click.Command, names: tuple[str, ...], inner: Mapping[str, click.Command]) -> str:
    context = click.Context(command, info_name=" ".join(names))
    paragraphs = [" ".join(part.split()) for part in (command.help or "").replace("\b", "").split("\n\n")]
    title = "-".join(names)
    lines = [f'.TH "{title.upper()}" "1" "" "rwkvflow {__version__}" "rwkvflow"', ".SH NAME"]
    lines.append(f"{escaped(title)} \\- {escaped(paragraphs[0].rstrip('.'))}")
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f".B {escaped(' '.join(names))}", escaped(usage)]
    if len(paragraphs) > 1:
        lines.append(".SH DESCRIPTION")
        lines += [line for part in paragraphs[1:] for line in (".PP", escaped(part))]
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    if records:
        lines.append(".SH OPTIONS")
        lines += [line for names_, text in records for line in (".TP", f".B {escaped(names_)}", escaped(text))]
    if inner:
        lines.append(".SH COMMANDS")
        for name in sorted(inner):
            summary = " ".join((inner[name].help or "").split("\n\n")[0].split()).rstrip(".")
            lines += [".TP", f".B {escaped(f'{title}-{name}')}(1)", escaped(summary)]
    if command.epilog:
        rows = [
            line.split(None, 1) for line in command.epilog.replace("\b", "").splitlines() if re.match(r" +\d", line)
        ]
        lines.append(".SH EXIT STATUS")
        lines += [line for code, text in rows for line in (".TP", f".B {code}", escaped(text))]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text for a line of its own: no backslash, no hyphen that becomes another, no request at its beginning."""
    flat = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{flat}" if flat.startswith((".", "'")) else flat
