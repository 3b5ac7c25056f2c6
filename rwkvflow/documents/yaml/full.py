"""A document as YAML with every key that there is: its description above it, and its value or default behind it.

As in the recipe that `init` writes, comments that start with "# " explain; those without the space are YAML to switch
on by removing the #: keys without a default, and what else may stand in a place.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 120


def full_text(document: BaseModel) -> str:
    """The document with all keys of its model. It is read as the document that it was made from."""
    return "".join(f"{line}\n" for line in _keys(type(document), document, 0, off=False))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type names, in order: of `Many[Model]`, `Lora | None`, `dict[str, Limit]`, of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(model for part in get_args(annotation) for model in models_in(part)))


def _keys(model: type[BaseModel], document: BaseModel | None, indent: int, *, off: bool) -> Iterator[str]:
    """Lines of all keys; off: as comments, with the defaults that the model has."""
    for number, (key, field) in enumerate(model.model_fields.items()):
        if indent == 0 and number:
            yield ""
        for line in textwrap.wrap(field.description or "", _WIDTH - indent - 2):
            yield f"{' ' * indent}# {line}"
        value = getattr(document, key) if document is not None else _default(field)
        yield from _key(key, value, indent, off=off or value is None)
        for other in models_in(field.annotation):
            if not _holds(value, other):
                yield from _other(other, value, indent + 2)


def _other(model: type[BaseModel], value: Any, indent: int) -> Iterator[str]:
    """What may stand in the place of a value, or in it, as comments."""
    if isinstance(value, Mapping):
        yield f"{' ' * indent}#KEY:"
        yield from _keys(model, None, indent + 2, off=True)
    elif isinstance(value, tuple):
        yield from _item(list(_keys(model, None, indent + 2, off=True)), indent)
    else:
        yield from () if value is None else (f"{' ' * indent}# Or, in place of that:",)
        yield from _keys(model, None, indent, off=True)


def _default(field: FieldInfo) -> Any:
    """What the key has where a document does not name it; None for nothing, and for what follows from other keys."""
    if field.is_required() or field.default_factory_takes_validated_data:
        return None
    return field.get_default(call_default_factory=True)


def _key(key: str, value: Any, indent: int, *, off: bool) -> Iterator[str]:
    """Lines of a key and its value."""
    start = f"{' ' * indent}{'#' * off}{key}:"
    if value is None:
        yield start
    elif isinstance(value, BaseModel):
        yield start
        yield from _keys(type(value), value, indent + 2, off=off)
    elif isinstance(value, tuple) and value:
        yield start
        for item in value:
            if isinstance(item, BaseModel):
                yield from _item(list(_keys(type(item), item, indent + 4, off=off)), indent + 2)
            else:
                yield f"{' ' * indent}  {'#' * off}- {_scalar(item)}"
    else:
        yield f"{start} {_scalar(value)}"


def _item(lines: list[str], indent: int) -> Iterator[str]:
    """Lines of a mapping, indented by two more, as an item of a list."""
    off = all(line.lstrip().startswith("#") for line in lines)
    first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("# "))
    text = lines[first].lstrip()
    if text.startswith("#") and not off:  # the dash would be gone with it
        yield f"{' ' * indent}-"
        yield from lines
        return
    yield from (line[2:] for line in lines[:first])
    yield f"{' ' * indent}{'#' * off}- {text.removeprefix('#')}"
    yield from lines[first + 1 :]


def _holds(value: Any, model: type[BaseModel]) -> bool:
    """Whether a value, or an item of it, shows the keys of the model already."""
    return any(isinstance(item, model) for item in (value if isinstance(value, tuple) else (value,)))


def _scalar(value: Any) -> str:
    """A value that has no keys of ours, as YAML in a line."""
    if isinstance(value, Mapping):
        value = {
            key: item.model_dump(exclude_none=True) if isinstance(item, BaseModel) else item
            for key, item in value.items()
        }
    return json.dumps(value, ensure_ascii=False)
