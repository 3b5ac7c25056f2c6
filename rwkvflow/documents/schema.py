"""JSON Schemas of the documents, for editors. They are generated from the models; the checks say more than they can."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

from rwkvflow.documents.formats import format_names
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow

Document = Literal["recipe", "workflow", "lock"]
DOCUMENTS: tuple[Document, ...] = ("recipe", "workflow", "lock")

_MODELS: dict[Document, type[Recipe] | type[Workflow] | type[Lock]] = {
    "recipe": Recipe,
    "workflow": Workflow,
    "lock": Lock,
}


def schema_of(document: Document) -> dict[str, Any]:
    """JSON Schema (2020-12) of a document."""
    schema = schema_for(document, _MODELS[document])
    if document == "recipe":
        _finish_recipe(schema)
    return schema


def schema_for(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of what a model of pydantic describes."""
    schema = model.model_json_schema()
    _untitle(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"rwkvflow {name}", **schema}


def schema_text(document: Document) -> str:
    """The schema as `rwkvflow schema` prints it."""
    return printed(schema_of(document))


def printed(schema: dict[str, Any]) -> str:
    """A schema as it is printed."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _finish_recipe(schema: dict[str, Any]) -> None:
    """What the model has in code: the alias `image`, the formats' names."""
    properties = schema["properties"]
    names = list(format_names())
    properties["formats"]["items"] = {
        "anyOf": [{"type": "string", "enum": names}, {"$ref": "#/$defs/FormatEntry"}],
    }
    entry = schema["$defs"]["FormatEntry"]["properties"]["format"]
    entry["anyOf"] = [{"enum": [*names, "chatrwkv"]}, {"pattern": "^gguf-[a-z0-9_]+(-from-f32)?(-mixed)?$"}]
    images = properties.pop("images")
    images["minItems"] = 1
    schema["properties"] = {}
    for name, value in properties.items():
        schema["properties"][name] = value
        if name == "formats":
            schema["properties"]["image"] = {"$ref": "#/$defs/Image", "description": "The only image; or use `images`"}
            schema["properties"]["images"] = images
    schema["not"] = {"required": ["image", "images"]}
    limits = schema["$defs"]["Smoke"]["properties"]["limits"]
    limits["propertyNames"] = {"anyOf": [{"enum": names}, {"pattern": "^chatrwkv-(cpu|cuda|mps)"}]}
    schema["$defs"]["Model"]["properties"]["tokenizer"]["examples"] = ["auto", "bytes", "world"]


def _untitle(node: Any) -> None:
    """Pydantic titles every property with its own name; editors show that twice."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for value in node.values():
            _untitle(value)
    elif isinstance(node, list):
        for value in node:
            _untitle(value)
