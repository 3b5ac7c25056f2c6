"""What requests may hold. What is not known is refused by name; what clients send and nobody here needs is let pass."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvflow.serve.errors import ApiError

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 20)]
MOST_CHOICES, MOST_STOPS, MOST_TOP = 16, 16, 20
SAFE = Field(default=None, description="Accepted for clients that send it; it changes nothing.")


class Body(BaseModel):
    """Of any request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str | None = Field(default=None, description="Which model; the first one where it is left out")


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool | None = SAFE


class Writing(Body):
    """How text is written, in whatever form it is asked for."""

    stream: bool | None = False
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    temperature: float | None = Field(default=1.0, ge=0, le=100)
    top_p: float | None = Field(default=0.7, gt=0, le=1)
    top_k: int | None = Field(default=0, ge=0)
    presence_penalty: float | None = Field(default=0.0, ge=-100, le=100)
    frequency_penalty: float | None = Field(default=0.0, ge=-100, le=100)
    penalty_decay: float | None = Field(default=0.996, ge=0, le=1)
    state: str | None = Field(default=None, description="A kept state (POST /v1/states) that the text begins from")
    grammar: str | None = Field(default=None, max_length=1 << 16, description="GBNF, or llguidance's Lark")
    user: str | None = SAFE
    safety_identifier: str | None = SAFE
    prompt_cache_key: str | None = SAFE
    metadata: dict[str, Any] | None = SAFE
    store: bool | None = SAFE
    service_tier: str | None = SAFE


class Sampled(Writing):
    """What all requests for text share but /v1/responses."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(default=1, ge=1, le=MOST_CHOICES)
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-1000, le=1000)]] | None = None


class JsonSchema(Body):
    """A named JSON schema."""

    model: None = Field(default=None, exclude=True)
    name: str = "answer"
    description: str | None = None
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer has to be."""

    model: None = Field(default=None, exclude=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Chat(Sampled):
    """POST /v1/chat/completions, and POST /apply-template."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(default=None, ge=0)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = SAFE
    response_format: ResponseFormat | None = None
    enable_thinking: bool | None = Field(default=None, description="Whether a G1 model thinks; null leaves it to it")
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    add_generation_prompt: bool | None = True
    verbosity: str | None = SAFE
    modalities: list[str] | None = SAFE


class Completion(Sampled):
    """POST /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens] = ""
    max_tokens: int | None = Field(default=16, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool | None = False
    best_of: int | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


class Reasoning(Body):
    """How much to think."""

    model: None = Field(default=None, exclude=True)
    effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    summary: str | None = SAFE
    generate_summary: str | None = SAFE


class TextFormat(JsonSchema):
    """What an answer has to be, as /v1/responses has it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None  # type: ignore[assignment]


class ResponseText(Body):
    """How an answer is written."""

    model: None = Field(default=None, exclude=True)
    format: TextFormat | None = None
    verbosity: str | None = SAFE


class Respond(Writing):
    """POST /v1/responses."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: Reasoning | None = None
    text: ResponseText | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    previous_response_id: str | None = Field(default=None, description="Refused: nothing is stored")
    parallel_tool_calls: bool | None = SAFE
    include: list[str] | None = SAFE
    truncation: Literal["disabled", "auto"] | None = SAFE
    stream_options: StreamOptions | None = SAFE


class Embedding(Body):
    """POST /v1/embeddings."""

    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = SAFE


class Tokenize(Body):
    """POST /tokenize."""

    content: str
    with_pieces: bool = False


class Detokenize(Body):
    """POST /detokenize."""

    tokens: Tokens


class KeepState(Body):
    """POST /v1/states."""

    text: str | None = None
    tokens: Tokens | None = None
    messages: list[dict[str, Any]] | None = None
    state: str | None = Field(default=None, description="A kept state that the text goes on from")


T = TypeVar("T", bound=BaseModel)


def parse(kind: type[T], body: bytes) -> T:
    """A request. Raises ApiError (400) that says what is wrong with it, and where."""
    try:
        text = body.decode("utf-8")
        found = json.loads(text, parse_constant=_refuse_constant)
        text.encode("utf-8")
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # \ud800 alone is JSON, and no text
    except RecursionError:
        raise ApiError(400, "the JSON is nested too deep") from None
    except UnicodeError as error:
        raise ApiError(400, f"the body is no UTF-8: {error}") from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = [str(part) for part in first["loc"]]
        param = ".".join(name for name in names if name.isidentifier() or name.isdigit()) or None
        if first["type"] == "extra_forbidden":
            raise ApiError(400, f"{param}: no such field", param=param, code="unknown_field") from None
        raise ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param) from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
