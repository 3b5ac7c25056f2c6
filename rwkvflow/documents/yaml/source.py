"""YAML text to plain values, each with its place in the file. Safe, strict, and with YAML 1.2's core types.

PyYAML only scans and parses here (events with marks). Composing is our own, because its composer forgets duplicate
keys, follows aliases without bound, recurses with the input, and resolves YAML 1.1 (`no` is false, 3:10 is 190).

Scalars follow the core schema of YAML 1.2 (section 10.3.2): null ~ | true false | decimal, 0o, 0x integers |
floats with or without a dot or sign, .inf, .nan. Everything else, and everything in quotes, is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rwkvflow.base.errors import DocumentError, Finding, UsageError
from rwkvflow.documents.yaml.nearest import did_you_mean, shown
from rwkvflow.documents.yaml.words import explain_syntax

MAX_BYTES = 4 << 20
MAX_DEPTH = 40
MAX_NODES = 200_000  # with aliases written out; a recipe of 1,000 models has some 6,000

Value = Any  # str | int | float | bool | None | list[Value] | dict[str, Value]
Path_ = tuple[str | int, ...]


@dataclass(slots=True)
class Scalar:
    """A value that has no parts, with its place in the text."""

    line: int  # from 1, as all lines and columns here
    column: int
    text: str  # as written, quotes and escapes undone
    value: str | int | float | bool | None
    plain: bool  # written without quotes
    size: int = 1


@dataclass(slots=True)
class Items:
    """A list, with its place in the text."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class Table:
    """A mapping with its keys in their order, and its place in the text."""

    line: int
    column: int
    entries: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    size: int = 1


Node = Scalar | Items | Table


def render_path(path: Sequence[str | int]) -> str:
    """("models", 0, "name") as models[0].name."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


class DocumentSource:
    """A document that could be read: its nodes, and what was wrong with them so far."""

    def __init__(self, file: str, root: Node) -> None:
        self.file = file
        self.root = root
        self.findings: list[Finding] = []

    def find(self, path: Sequence[str | int]) -> tuple[Scalar | None, Node]:
        """Key and value as far along `path` as the document goes; the key is None for list items and the root."""
        key: Scalar | None = None
        node = self.root
        for part in path:
            if isinstance(node, Table) and part in node.entries:
                key, node = node.entries[str(part)]
            elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
                key, node = None, node.items[part]
            else:
                break
        return key, node

    def finding(self, path: Sequence[str | int], message: str, *, at_key: bool = False) -> Finding:
        """A finding at the value (or the key) that `path` leads to."""
        key, node = self.find(path)
        # A value that was left out has no place of its own worth pointing at.
        empty = isinstance(node, Scalar) and node.plain and not node.text
        where = key if key is not None and (at_key or empty) else node
        return Finding(self.file, where.line, where.column, render_path(path), message)

    def add(self, path: Sequence[str | int], message: str, *, at_key: bool = False) -> None:
        """Keep a finding; parameters are those of `finding`."""
        self.findings.append(self.finding(path, message, at_key=at_key))

    def each(self, pattern: str) -> Iterator[tuple[Path_, Value]]:
        """All values at a pattern such as "models.*.name" (* is any key or index) that the document has."""

        def walk(node: Node, parts: Sequence[str], path: Path_) -> Iterator[tuple[Path_, Value]]:
            if not parts:
                yield path, to_python(node)
            elif isinstance(node, Items) and parts[0] == "*":
                for index, item in enumerate(node.items):
                    yield from walk(item, parts[1:], (*path, index))
            elif isinstance(node, Table):
                for key in node.entries if parts[0] == "*" else [parts[0]]:
                    if key in node.entries:
                        yield from walk(node.entries[key][1], parts[1:], (*path, key))

        return walk(self.root, pattern.split("."), ())

    def texts(self, pattern: str) -> list[tuple[Path_, str]]:
        """Those values of `each` that are text."""
        return [(path, value) for path, value in self.each(pattern) if isinstance(value, str)]

    def to_python(self) -> Value:
        """The whole document as Python values."""
        return to_python(self.root)


def to_python(node: Node) -> Value:
    """The value of a node: dict, list, or a scalar."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [to_python(item) for item in node.items]
    return {key: to_python(value) for key, (_, value) in node.entries.items()}


# --- scalars ---------------------------------------------------------------------------------------------------

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS = 300


def resolve(text: str) -> str | int | float | bool | None:
    """What a scalar written without quotes stands for."""
    if not text or text[0] in "~nNtTfF":
        return None if text in _NULL else _BOOL.get(text, text)
    if text[0] not in "+-.0123456789":
        return text
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16) if text[1:2] in ("o", "x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special[3] else float(special[1] + "inf")
    return text


# --- text to nodes ---------------------------------------------------------------------------------------------


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file. DocumentError where it is not UTF-8 or too large, UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such file", remedy="`rwkvflow init SOURCE` writes a recipe to start from"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return decode(data, str(path), max_bytes)


def decode(data: bytes, file: str, max_bytes: int = MAX_BYTES) -> str:
    """Bytes to text; a byte order mark is dropped."""
    if len(data) > max_bytes:
        raise DocumentError([Finding(file, 1, 1, "", f"larger than {max_bytes >> 20} MiB; this is no {_KIND}")])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DocumentError([Finding(file, 1, 1, "", "the file is UTF-16; save it as UTF-8")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(errors="replace")
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise DocumentError([Finding(file, line, column, "", message)]) from None


_KIND = "recipe, workflow or lock"


def parse(text: str, file: str) -> DocumentSource:
    """Compose a document. Raises DocumentError where there is no document; else see `DocumentSource.findings`."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Composer(file).compose(fast, text)
    except (yaml.YAMLError, ValueError) as error:
        problem = error
    if fast is not yaml.SafeLoader:
        # libyaml words its errors differently from PyYAML; only one wording is worth explaining.
        try:
            return _Composer(file).compose(yaml.SafeLoader, text)
        except (yaml.YAMLError, ValueError) as error:
            problem = error
    line, column, message = explain_syntax(problem, text)
    raise DocumentError([Finding(file, line, column, "", message)]) from None


@dataclass(slots=True)
class _Frame:
    node: Items | Table
    anchor: str | None
    key: Scalar | None = None
    drop: bool = False  # the value to come belongs to a key that cannot be kept


class _Stop(Exception):
    """Reading further makes no sense; the findings say why."""


class _Composer:
    """Builds nodes from events without recursion, so that hostile nesting costs nothing."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.root: Node | None = None
        self.stack: list[_Frame] = []
        self.anchors: dict[str, Node | None] = {}  # None while the anchored node is still open
        self.nodes = 0

    def compose(self, loader_class: Any, text: str) -> DocumentSource:
        loader = loader_class(text)
        documents = 0
        try:
            while loader.check_event():
                event = loader.get_event()
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self.problem(event, "a second document starts here; one file holds one document")
                        break
                self.take(event)
        except _Stop:
            raise DocumentError(self.findings) from None
        finally:
            loader.dispose()
        if self.root is None or (isinstance(self.root, Scalar) and self.root.value is None):
            raise DocumentError(self.findings or [Finding(self.file, 1, 1, "", "the file is empty")])
        source = DocumentSource(self.file, self.root)
        source.findings = self.findings
        return source

    def path(self) -> Path_:
        parts: list[str | int] = []
        for frame in self.stack:
            if isinstance(frame.node, Items):
                parts.append(len(frame.node.items))
            elif frame.key is not None:
                parts.append(frame.key.text)
        return tuple(parts)

    def problem(self, event: Any, message: str) -> None:
        mark = event.start_mark
        self.findings.append(Finding(self.file, mark.line + 1, mark.column + 1, render_path(self.path()), message))

    def take(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.ScalarEvent):
            plain = not event.style
            value = resolve(event.value) if plain else event.value
            if event.tag is not None:
                if event.tag in ("!", "tag:yaml.org,2002:str"):
                    value, plain = event.value, False
                else:
                    self.unsupported_tag(event)
            scalar = Scalar(line, column, event.value, value, plain)
            self.anchor(event, scalar)
            self.put(event, scalar)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if event.tag not in (None, "!", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
                self.unsupported_tag(event)
            if len(self.stack) >= MAX_DEPTH:
                self.problem(event, f"nested more than {MAX_DEPTH} levels deep")
                raise _Stop
            node = (Items if isinstance(event, yaml.SequenceStartEvent) else Table)(line, column)
            self.anchor(event, None)
            self.stack.append(_Frame(node, event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            frame = self.stack.pop()
            if frame.anchor is not None:
                self.anchors[frame.anchor] = frame.node
            self.put(event, frame.node)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)

    def unsupported_tag(self, event: Any) -> None:
        name = event.tag.replace("tag:yaml.org,2002:", "!!")
        self.problem(event, f"the tag {shown(name)} is not supported; a value that starts with ! must be in quotes")

    def anchor(self, event: Any, node: Node | None) -> None:
        if event.anchor is None:
            return
        if event.anchor in self.anchors:
            self.problem(event, f"the anchor &{event.anchor} is defined twice")
        self.anchors[event.anchor] = node

    def alias(self, event: Any) -> None:
        name = event.anchor
        if name not in self.anchors:
            near = did_you_mean(name, self.anchors)
            self.problem(
                event, f'no anchor &{name} before this alias{near}; text that starts with * needs quotes: "*{name}"'
            )
            node: Node | None = None
        else:
            node = self.anchors[name]
            if node is None:
                self.problem(event, f"the alias *{name} stands inside its own anchor")
        if node is None:  # keeps the places of what follows right
            node = Scalar(event.start_mark.line + 1, event.start_mark.column + 1, f"*{name}", f"*{name}", True)
        self.put(event, node)

    def put(self, event: Any, node: Node) -> None:
        """Place a finished node in the innermost open one."""
        self.nodes += node.size if isinstance(event, yaml.AliasEvent) else 1
        if self.nodes > MAX_NODES:
            self.problem(event, f"more than {MAX_NODES:,} values, aliases written out; this is no {_KIND}")
            raise _Stop
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        if isinstance(frame.node, Items):
            frame.node.items.append(node)
            frame.node.size += node.size
        elif frame.key is None:
            self.put_key(event, frame, node)
        else:
            if not frame.drop:
                frame.node.entries[frame.key.text] = (frame.key, node)
                frame.node.size += node.size + 1
            frame.key, frame.drop = None, False

    def put_key(self, event: Any, frame: _Frame, node: Node) -> None:
        table = frame.node
        assert isinstance(table, Table)  # noqa: S101 - for the type checker; the caller made sure
        if not isinstance(node, Scalar):
            frame.key, frame.drop = Scalar(node.line, node.column, "?", "?", True), True
            self.findings.append(
                Finding(
                    self.file,
                    node.line,
                    node.column,
                    render_path(self.path()[:-1]),
                    "a key must be text; a value that starts with { or [ must be in quotes",
                )
            )
            return
        message = None
        if node.plain and node.text == "<<":
            message = "merge keys (<<) are not part of YAML 1.2; write the keys out, or alias a whole value"
        elif not isinstance(node.value, str):
            what = shown(node.text) if node.text else "an empty key"
            message = (
                f"a key must be text, not {what}; write it in quotes"
                if node.text
                else "a key is missing before the ':'"
            )
        elif node.text in table.entries:
            first = table.entries[node.text][0].line
            message = f"duplicate key {shown(node.text)}; it first stands on line {first}"
        if message is not None:
            path = render_path(self.path())
            mark = event.start_mark
            self.findings.append(Finding(self.file, mark.line + 1, mark.column + 1, path, message))
            frame.drop = True
        frame.key = node
