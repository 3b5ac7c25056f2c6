"""GET /openapi.json: the API for programs that read descriptions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from rwkvflow import __version__
from rwkvflow.serve.openai.schema import Chat, Completion, Detokenize, Embedding, KeepState, Tokenize

POSTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (Chat, "Go on with a conversation"),
    "/v1/completions": (Completion, "Go on with a text"),
    "/v1/embeddings": (Embedding, "Vectors of texts"),
    "/tokenize": (Tokenize, "Tokens of a text"),
    "/detokenize": (Detokenize, "The text of tokens"),
    "/apply-template": (Chat, "What a conversation looks like to the model"),
    "/v1/states": (KeepState, "Keep the state after a text"),
}
GETS = {
    "/health": "Whether the server runs",
    "/metrics": "Figures for Prometheus",
    "/v1/models": "The models that are served",
    "/v1/states": "The states that are kept of a model",
}
_ERROR = {
    "description": "An error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def described() -> dict[str, Any]:
    """OpenAPI 3.1."""
    schemas: dict[str, Any] = {"Error": _ERROR_SCHEMA}
    paths: dict[str, Any] = {}
    for path, (kind, summary) in POSTS.items():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
        reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
        paths.setdefault(path, {})["post"] = {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}},
            "responses": {"200": {"description": "The answer"}, "201": {"description": "Made"}, "default": _ERROR},
        }
    for path, summary in GETS.items():
        responses = {"200": {"description": "The answer"}, "default": _ERROR}
        paths.setdefault(path, {})["get"] = {"summary": summary, "responses": responses}
    return {
        "openapi": "3.1.0",
        "info": {"title": "rwkvflow serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }
