"""Pydantic's errors as findings: where in the file, and in words for people who never heard of pydantic."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rwkvflow.base.errors import Finding
from rwkvflow.documents import parts, recipe, workflow
from rwkvflow.documents.yaml.nearest import did_you_mean, nearest, one_of, shown
from rwkvflow.documents.yaml.source import DocumentSource, Items, Node, Scalar, render_path, resolve

_PATTERNS = {
    parts.NAME: "a name of letters, digits, '.', '-' and '_' that starts with a letter or digit (100 at most)",
    parts.SHA256: "a sha256 of 64 digits and lower-case letters a to f",
    parts.COMMIT: "a full commit hash of 40 digits and lower-case letters a to f",
    parts.IMAGE_REFERENCE: "an image reference such as debian:bookworm or registry/name@sha256:…",
    parts.PYTHON: 'a Python version such as "3.11" (no patch version)',
    parts.TORCH: 'a PyTorch version such as "2.13.0"',
    parts.EXPECT: 'a count of matches: "3", "1+" or "any"',
    parts.TARGET: "a target triple such as x86_64-linux-gnu",
    parts.SPLIT: "a size such as 5GB, 500MB or 2GiB, or none",
    parts.CMAKE_OPTION: "the name of a CMake option, without -D",
    workflow.DURATION: "a duration such as 90s, 30m or 2h",
    workflow.SIZE: "a size such as 512MiB or 4GiB",
    r"^sha256:[0-9a-f]{64}$": "a digest: sha256: and 64 digits and lower-case letters a to f",
}

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}

_YES = frozenset({"yes", "on", "y", "1"})
_NO = frozenset({"no", "off", "n", "0"})


def explain(error: ValidationError, model: type[BaseModel], source: DocumentSource) -> list[Finding]:
    """One finding for each thing that is wrong; a key missing only because it is misspelled counts once."""
    items: list[tuple[tuple[str | int, ...], Any]] = []
    for item in error.errors(include_url=False):
        place = _place(item["loc"], source)
        if item["type"] != "default_factory_not_called" and not _follows(item, place, source):
            items.append((place, item))
    missing: dict[tuple[str | int, ...], set[str]] = {}
    for place, item in items:
        if item["type"] == "missing":
            missing.setdefault(place[:-1], set()).add(str(place[-1]))
    misspelled: set[tuple[str | int, ...]] = set()
    findings: list[Finding] = []
    for place, item in items:
        if item["type"] == "extra_forbidden":
            known = keys_at(model, place[:-1])
            key = str(place[-1])
            # A key that has to be there anyway is the likelier meaning.
            meant = nearest(key, sorted(missing.get(place[:-1], ()))) or nearest(key, known)
            hint = f"; did you mean {shown(meant)}?" if meant else f"; known here: {one_of(known)}"
            found = source.finding(place, f"unknown key {shown(key)}{hint}", at_key=True)
            findings.append(Finding(found.file, found.line, found.column, render_path(place[:-1]), found.message))
            if meant:
                misspelled.add((*place[:-1], meant))
    for place, item in items:
        if item["type"] == "missing" and place not in misspelled:
            findings.append(source.finding(place[:-1], f"the key {shown(str(place[-1]))} is missing"))
        elif item["type"] not in ("missing", "extra_forbidden"):
            key_itself = item["loc"][-1:] == ("[key]",)
            findings.append(source.finding(place, _message(item, place, source, key_itself), at_key=key_itself))
    return findings


def _follows(item: Any, place: Sequence[str | int], source: DocumentSource) -> bool:
    """A list counts as too short for pydantic when its items are wrong; that has been said of the items."""
    node = source.find(place)[1]
    return item["type"] == "too_short" and not (isinstance(node, Items) and not node.items)


def _place(loc: Sequence[str | int], source: DocumentSource) -> tuple[str | int, ...]:
    place = tuple(part for part in loc if part not in recipe.UNION_TAGS and part != "[key]")
    _, image = source.find(("image",))
    if place[:2] == ("images", 0) and image is not source.root and source.find(("images",))[1] is source.root:
        return ("image", *place[2:])
    return place


def _message(item: Any, place: Sequence[str | int], source: DocumentSource, key_itself: bool) -> str:
    kind: str = item["type"]
    context: dict[str, Any] = item.get("ctx", {})
    _, node = source.find(place)
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, found {found_words(node)}{_type_hint(kind, node, place)}"
    if kind == "expected":
        hint = _type_hint("string_type", node, place)
        hint = hint or (_type_hint("bool_type", node, place) if "true" in item["msg"] else "")
        return f"expected {item['msg']}, found {found_words(node)}{hint}"
    if kind == "string_pattern_mismatch":
        what = _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
        found = shown(str(place[-1])) if key_itself else found_words(node)
        return f"expected {what}, found {found}"
    if kind == "literal_error":
        return _literal(context["expected"], shown(str(place[-1])) if key_itself else found_words(node), node)
    simple: dict[str, Callable[[], str]] = {
        "too_short": lambda: "the list is empty; give at least one",
        "string_too_short": lambda: "the text is empty",
        "greater_than": lambda: f"must be more than {context['gt']:g}, found {found_words(node)}",
        "greater_than_equal": lambda: f"must be at least {context['ge']:g}, found {found_words(node)}",
        "less_than": lambda: f"must be less than {context['lt']:g}, found {found_words(node)}",
        "less_than_equal": lambda: f"must be at most {context['le']:g}, found {found_words(node)}",
        "finite_number": lambda: f"expected a finite number, found {found_words(node)}",
        "string_unicode": lambda: "the text holds half of a surrogate pair, which is no character",
        "value_error": lambda: str(context["error"]),
    }
    return simple[kind]() if kind in simple else str(item["msg"])


def found_words(node: Node) -> str:
    """What stands there, in words."""
    if not isinstance(node, Scalar):
        return "a list" if isinstance(node, Items) else "a mapping"
    value = node.value
    if isinstance(value, str):
        return f"the text {shown(value)}" if value else "an empty text"
    if value is None:
        return f"{node.text} (no value)" if node.text else "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value) and "." not in node.text[:2]:
        return f"the number {shown(node.text)}, which is out of range"
    return f"the number {node.text if len(node.text) <= 80 else shown(node.text)}"


def _type_hint(kind: str, node: Node, place: Sequence[str | int]) -> str:
    if not isinstance(node, Scalar):
        if kind in ("model_type", "dict_type") and place[-1:] == ("image",):
            return "; several images go under images:"
        return ""
    key = place[-1] if place and isinstance(place[-1], str) else None
    prefix = f"{render_path([key])}: " if key is not None else "- "
    text = node.text if len(node.text) <= 80 else "…"
    if kind == "string_type" and node.text and not isinstance(node.value, str):
        return f'; write it in quotes: {prefix}"{text}"'
    if kind == "tuple_type" and node.value is not None:
        return f"; write a list: {prefix}[{text}]"
    if kind in ("int_type", "float_type") and isinstance(node.value, str):
        number = resolve(node.value)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return f"; write it without quotes: {prefix}{node.value}"
    if kind == "bool_type" and node.text.lower() in _YES | _NO:
        return f"; write {prefix}{'true' if node.text.lower() in _YES else 'false'}"
    return ""


def _literal(expected: str, found: str, node: Node) -> str:
    options = [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]
    if options == ["1"]:
        return f"expected 1, the only version there is, found {found}"
    near = did_you_mean(node.text, options) if isinstance(node, Scalar) else ""
    return f"expected {'one of ' if len(options) > 1 else ''}{one_of(options)}, found {found}{near}"


# --- which keys a mapping can have ------------------------------------------------------------------------------


def keys_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The keys that the mapping at a place of a document may have."""
    annotations: list[Any] = [model]
    for part in place:
        following: list[Any] = []
        for annotation in annotations:
            for kind in _alternatives(annotation):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    name = part
                    if part == "image" and "images" in kind.model_fields:
                        following.append(recipe.Image)
                    elif name in kind.model_fields:
                        following.append(_annotation(kind, str(name)))
                elif get_origin(kind) is tuple and isinstance(part, int):
                    following.append(get_args(kind)[0])
                elif get_origin(kind) is dict:
                    following.append(get_args(kind)[1])
        annotations = following
    keys: list[str] = []
    for annotation in annotations:
        for kind in _alternatives(annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += [name for name in kind.model_fields if name not in keys]
                if kind is recipe.Recipe:
                    keys.append("image")
    return keys


def _annotation(kind: type[BaseModel], name: str) -> Any:
    return kind.model_fields[name].annotation


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without Annotated around them."""
    while get_origin(annotation) is typing.Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]
