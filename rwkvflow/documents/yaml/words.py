"""PyYAML's syntax errors in words that say what to do."""

from __future__ import annotations

import re

import yaml

from rwkvflow.documents.yaml.nearest import shown


def explain_syntax(error: Exception, text: str) -> tuple[int, int, str]:
    """(line, column, message) for what PyYAML raised on `text`; line and column count from 1."""
    if isinstance(error, yaml.reader.ReaderError):
        position = error.position if isinstance(error.position, int) else 0
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        code = ord(error.character) if isinstance(error.character, str) else int(error.character)
        return line, column, f"the control character U+{code:04X} cannot stand in YAML"
    if not isinstance(error, yaml.MarkedYAMLError):
        return 1, 1, f"not YAML: {error}"
    conflict = re.search(r"^<<<<<<< ", text, re.MULTILINE)
    if conflict is not None:
        return text.count("\n", 0, conflict.start()) + 1, 1, "the file holds an unresolved merge conflict"
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, 1, f"not YAML: {error.problem}"
    opened = error.context_mark or mark
    problem, context = error.problem or "", error.context or ""
    if "quoted scalar" in context and "unexpected" in problem:
        return opened.line + 1, opened.column + 1, "the quote that opens here is not closed"
    lines = text.splitlines() or [""]
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    return mark.line + 1, mark.column + 1, _words(problem, context, rest, opened.line + 1)


def _words(problem: str, context: str, rest: str, start: int) -> str:
    """What went wrong at `rest` of a line, in a construct that began on line `start`."""
    if rest.startswith("\t"):
        return "a tab; YAML is indented with spaces"
    if "cannot start any token" in problem:
        return f"a value cannot start with {shown(rest[:1])}; write it in quotes"
    if "scanning an alias" in context or "scanning an anchor" in context:
        sign = "*" if "alias" in context else "&"
        return f'a value that starts with {sign} must be in quotes, e.g. "{sign}" or "{sign}-world"'
    if "mapping values are not allowed" in problem:
        return "a ':' where no key can be; check the indentation, or write a text that holds ': ' in quotes"
    if "are not allowed here" in problem:
        return "a list item or key where none can be; check the indentation, or write the text in quotes"
    if "could not find expected ':'" in problem:
        return f"the line {start} is no 'key: value' and no '- item'; is a ':' missing there?"
    if "escape" in problem or "escape" in context or "hexadecimal" in problem:
        return "a backslash that escapes nothing known; in single quotes, a backslash is just a backslash"
    if "flow" in context and rest[:1] not in ("]", "}", ","):
        bracket, what = ("]", "list") if "sequence" in context else ("}", "mapping")
        return f"a ',' or '{bracket}' is missing in the {what} that opens on line {start}"
    if rest[:1] in ("]", "}", ","):
        return f"a {shown(rest[:1])} where none can be; write a text that holds it in quotes"
    if "parsing a block mapping" in context or "parsing a block collection" in context:
        return f"the indentation differs from that of the block from line {start}"
    if "tag" in context or "undefined tag handle" in problem:
        return "tags are not supported; a value that starts with ! must be in quotes"
    return f"not YAML: {_tidy(problem)}"


def _tidy(problem: str) -> str:
    return re.sub(r"\s+", " ", problem.replace("<", "").replace(">", ""))
