"""GET /openapi.json: the API for programs that read descriptions: requests, answers, and which errors may come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rwkvflow import __version__
from rwkvflow.serve.openai.schema import Chat, Completion, Detokenize, Embedding, KeepState, Respond, Tokenize

JSON, EVENTS, BINARY = "application/json", "text/event-stream", "application/octet-stream"


def _object(properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object of these and further fields."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _const(value: str) -> dict[str, Any]:
    return {"const": value}


TEXT, COUNT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "number"}
ANY: dict[str, Any] = {}
MAYBE_TEXT, MAYBE_NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
FINISH = {"enum": ["stop", "length", "tool_calls"]}
USAGE = _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
OWN = _object({"seed": COUNT, "cached_tokens": COUNT})
MODEL = _object(
    {
        "id": TEXT,
        "object": _const("model"),
        "created": COUNT,
        "owned_by": TEXT,
        "size": COUNT,
        "sha256": MAYBE_TEXT,
        "format": MAYBE_TEXT,
        "verdict": MAYBE_TEXT,
        "kl_divergence": MAYBE_NUMBER,
        "perplexity": MAYBE_NUMBER,
        "perplexity_rise": MAYBE_NUMBER,
        "top1_agreement": MAYBE_NUMBER,
        "bits_per_weight": MAYBE_NUMBER,
        "weight_bytes": MAYBE_NUMBER,
    }
)
STATE = _object({"id": TEXT, "object": _const("state"), "tokens": COUNT, "bytes": COUNT})
HEAD = {"id": TEXT, "created": COUNT, "model": TEXT, "system_fingerprint": TEXT}
MESSAGE = _object(
    {"role": _const("assistant"), "content": MAYBE_TEXT, "reasoning_content": TEXT, "tool_calls": _list(ANY)},
    optional=("reasoning_content", "tool_calls"),
)
CHAT = _object(
    {
        **HEAD,
        "object": _const("chat.completion"),
        "choices": _list(_object({"index": COUNT, "message": MESSAGE, "logprobs": ANY, "finish_reason": FINISH})),
        "usage": USAGE,
        "rwkvflow": OWN,
    }
)
COMPLETION = _object(
    {
        **HEAD,
        "object": _const("text_completion"),
        "choices": _list(_object({"index": COUNT, "text": TEXT, "logprobs": ANY, "finish_reason": FINISH})),
        "usage": USAGE,
        "rwkvflow": OWN,
    }
)
RESPONSE = _object(
    {
        "id": TEXT,
        "object": _const("response"),
        "created_at": COUNT,
        "status": {"enum": ["completed", "incomplete"]},
        "model": TEXT,
        "output": _list(_object({"id": TEXT, "type": {"enum": ["message", "reasoning", "function_call"]}})),
        "usage": _object({"input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT}),
    }
)
EMBEDDINGS = _object(
    {
        "object": _const("list"),
        "data": _list(
            _object({"object": _const("embedding"), "index": COUNT, "embedding": {"anyOf": [TEXT, _list(NUMBER)]}})
        ),
        "model": TEXT,
        "usage": _object({"prompt_tokens": COUNT, "total_tokens": COUNT}),
    }
)
PIECE = _object({"id": COUNT, "piece": TEXT, "bytes": _list(COUNT)})
ERROR = _object(
    {"error": _object({"message": TEXT, "type": TEXT, "param": MAYBE_TEXT, "code": MAYBE_TEXT})},
)
WHICH = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": TEXT,
    "description": "Which model; else the first",
}
NAMED = {"name": "id", "in": "path", "required": True, "schema": TEXT}


@dataclass(frozen=True)
class _Call:
    """`good`: the status of success, and what comes then: a media type and its schema, each."""

    summary: str
    good: Mapping[str, Any]
    status: int = 200
    body: type[BaseModel] | None = None
    data: bool = False  # the body is a file
    parameters: tuple[Mapping[str, Any], ...] = ()
    open: bool = False  # without a key
    errors: tuple[int, ...] = ()

    def described(self) -> dict[str, Any]:
        content = {media: {"schema": schema} for media, schema in self.good.items()}
        codes = {*self.errors, *(() if self.open else (401,)), 403, 421, 500, 503}
        if self.body is not None or self.data:
            codes |= {400, 404, 408, 413, 507}
        codes |= {415, 429} if self.body is not None else set()
        out: dict[str, Any] = {
            "summary": self.summary,
            "responses": {
                str(self.status): {"description": "The answer", "content": content},
                **{str(code): {"$ref": "#/components/responses/Error"} for code in sorted(codes)},
            },
        }
        if self.parameters:
            out["parameters"] = [dict(each) for each in self.parameters]
        if self.open:
            out["security"] = []
        if self.body is not None:
            reference = {"$ref": f"#/components/schemas/{self.body.__name__}"}
            out["requestBody"] = {"required": True, "content": {JSON: {"schema": reference}}}
        if self.data:
            out["requestBody"] = {
                "required": True,
                "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
            }
        return out


def _json(schema: Any) -> dict[str, Any]:
    return {JSON: schema}


CALLS: dict[tuple[str, str], _Call] = {
    ("get", "/"): _Call("The page", {"text/html": TEXT}, open=True),
    ("get", "/health"): _Call(
        "Whether the server runs", _json(_object({"status": _const("ok"), "version": TEXT})), open=True
    ),
    ("get", "/metrics"): _Call("Figures for Prometheus", {"text/plain": TEXT}),
    ("get", "/openapi.json"): _Call("This description", _json({"type": "object"})),
    ("get", "/plot"): _Call("The release's plot of quality against size", {"image/svg+xml": TEXT}, errors=(404,)),
    ("get", "/v1/models"): _Call(
        "The models that are served", _json(_object({"object": _const("list"), "data": _list(MODEL)}))
    ),
    ("get", "/v1/models/{id}"): _Call("One of them", _json(MODEL), parameters=(NAMED,), errors=(404,)),
    ("post", "/v1/chat/completions"): _Call("Go on with a conversation", {JSON: CHAT, EVENTS: TEXT}, body=Chat),
    ("post", "/v1/completions"): _Call("Go on with a text", {JSON: COMPLETION, EVENTS: TEXT}, body=Completion),
    ("post", "/v1/responses"): _Call("Answer a conversation", {JSON: RESPONSE, EVENTS: TEXT}, body=Respond),
    ("post", "/v1/embeddings"): _Call("Vectors of texts", _json(EMBEDDINGS), body=Embedding),
    ("post", "/tokenize"): _Call(
        "Tokens of a text", _json(_object({"tokens": {"anyOf": [_list(COUNT), _list(PIECE)]}})), body=Tokenize
    ),
    ("post", "/detokenize"): _Call("The text of tokens", _json(_object({"content": TEXT})), body=Detokenize),
    ("post", "/apply-template"): _Call(
        "What a conversation looks like to the model", _json(_object({"prompt": TEXT})), body=Chat
    ),
    ("get", "/v1/states"): _Call(
        "The states that are kept of a model",
        _json(_object({"object": _const("list"), "data": _list(STATE)})),
        parameters=(WHICH,),
        errors=(404,),
    ),
    ("post", "/v1/states"): _Call("Keep the state after a text", _json(STATE), 201, body=KeepState),
    ("post", "/v1/states/load"): _Call(
        "Keep a state that was saved, or trained initial states", _json(STATE), 201, data=True, parameters=(WHICH,)
    ),
    ("get", "/v1/states/{id}/file"): _Call(
        "A kept state as a file", {BINARY: TEXT}, parameters=(NAMED, WHICH), errors=(404,)
    ),
    ("delete", "/v1/states/{id}"): _Call(
        "Forget a kept state",
        _json(_object({"id": TEXT, "object": _const("state"), "deleted": {"const": True}})),
        parameters=(NAMED, WHICH),
        errors=(404,),
    ),
}


def described() -> dict[str, Any]:
    """OpenAPI 3.1."""
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {}
    for (method, path), call in CALLS.items():
        if call.body is not None and call.body.__name__ not in schemas:
            schema = call.body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[call.body.__name__] = schema
        paths.setdefault(path, {})[method] = call.described()
    error = {"description": "An error", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "rwkvflow serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
