"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkvflow.base.jinja_apart import TemplateError
from rwkvflow.engine.prompts import BLANK, EFFORTS, STOPS, THINK, content_text, render
from rwkvflow.serve.batching.job import Chosen, Done, Piece, Read
from rwkvflow.serve.chat_template import ChatTemplate
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.openai.answer import CALL, Delta, Parser, new_id
from rwkvflow.serve.openai.schema import Chat
from rwkvflow.serve.openai.work import (
    AnswerStream,
    RequestLimits,
    encode,
    ends_in_tokens,
    make_jobs,
    schema_of,
    seed_of,
    stops_of,
)
from rwkvflow.serve.shelf import Served

DEFAULT_TOKENS = 1024


@dataclass(frozen=True)
class Asked:
    """A conversation as the model is given it. `schema`: what the answer has to fit; `called`: it begins in a call."""

    text: str
    ends: tuple[int, ...]
    think: bool | None
    tools: tuple[str, ...] = ()
    called: bool = False
    closed: bool = False
    schema: Any = None
    stops: tuple[str, ...] = STOPS


def asked(request: Chat, chat: ChatTemplate | None = None) -> Asked:
    """`chat`: the template that the model brings, where it is not RWKV's own. Raises ApiError (400)."""
    if chat is not None:
        return _as_it_wants(request, chat)
    think = thinking(request)
    tools, forced = tools_of(request)
    schema = schema_of(request.response_format)
    if (schema is not None or request.grammar is not None or forced) and think:
        message = "thinking does not go together with a schema, a grammar or a call that is required"
        raise ApiError(400, message, param="enable_thinking")
    closed = schema is not None or request.grammar is not None or forced is not None
    messages = request.messages
    effort = EFFORTS.get(request.reasoning_effort or "", "")
    if effort and think:
        last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
        if last is not None and isinstance(messages[last].get("content"), str):
            messages = [*messages]
            messages[last] = {**messages[last], "content": messages[last]["content"].rstrip() + effort}
    try:
        prompt = render(
            messages, think=think, tools=tools, closed=closed, generate=request.add_generation_prompt is not False
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError(400, f"messages: {error}", param="messages") from None
    text = prompt.text
    if forced is not None:
        text += f" {CALL}\n"
        schema = call_schema(forced)
    names = tuple(tool["function"]["name"] for tool in tools)
    return Asked(text, prompt.ends, think, names, forced is not None, closed, schema)


def _as_it_wants(request: Chat, chat: ChatTemplate) -> Asked:
    """By a template of a stranger's, which takes some time. Raises ApiError (400)."""
    for name, given in (("tools", request.tools), ("state", request.state), ("reasoning_effort", _effort(request))):
        if given:
            raise ApiError(400, f"{name}: this model has a chat template of its own, with which that is not known here",
                           param=name)  # fmt: skip
    think = thinking(request)
    try:
        messages = [{**message, "content": content_text(message.get("content"))} for message in request.messages]
        text = chat.render(messages, think=think, generate=request.add_generation_prompt is not False)
        stops = chat.stops
    except (TemplateError, ValueError, AttributeError) as error:
        raise ApiError(400, f"messages: the model's chat template{error}", param="messages") from None
    inside = text.rstrip().endswith(THINK)
    return Asked(text, (), inside or None, closed=inside, schema=schema_of(request.response_format), stops=stops)


def _effort(request: Chat) -> str:
    return EFFORTS.get(request.reasoning_effort or "", "")


def thinking(request: Chat) -> bool | None:
    """What the request says, in any of the ways that clients have. Raises ApiError (400)."""
    extra = request.chat_template_kwargs or {}
    for name, value in extra.items():
        if name != "enable_thinking" or not isinstance(value, bool):
            raise ApiError(400, f"chat_template_kwargs.{name}: only enable_thinking", param="chat_template_kwargs")
    if request.enable_thinking is not None:
        return request.enable_thinking
    if "enable_thinking" in extra:
        return bool(extra["enable_thinking"])
    return None if request.reasoning_effort is None else request.reasoning_effort not in ("none", "minimal")


def tools_of(request: Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """(functions that the model is told of, those of which one has to be called). Raises ApiError (400)."""
    tools = request.tools or []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise ApiError(400, f"tools.{index}: only functions are known", param=f"tools.{index}")
        name, parameters = function.get("name"), function.get("parameters", {})
        if not isinstance(name, str) or not name or len(name) > 64 or not name.replace("-", "_").isidentifier():
            raise ApiError(400, f"tools.{index}.function.name: a name of letters, digits and _", param=f"tools.{index}")
        if parameters is not None and not isinstance(parameters, dict):
            raise ApiError(400, f"tools.{index}.function.parameters: a JSON schema", param=f"tools.{index}")
    choice = request.tool_choice
    if choice in ("required",) and not tools:
        raise ApiError(400, "tool_choice: there are no tools", param="tool_choice")
    if choice == "none":
        return [], None
    if choice == "required":
        return tools, tools
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name") if choice.get("type") == "function" else None
        named = [tool for tool in tools if tool["function"]["name"] == name]
        if not named:
            raise ApiError(400, "tool_choice: it names none of the tools", param="tool_choice")
        return tools, named
    return tools, None


def call_schema(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a call of one of these functions looks like."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


@dataclass
class Choice:
    """One answer as it comes."""

    parser: Parser
    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Chosen] = field(default_factory=list)

    def take(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        """Adds them up; the same as a stream has them."""
        out: list[dict[str, Any]] = []
        for delta in deltas:
            if delta.call is not None:
                name, arguments = delta.call
                function = {"name": name, "arguments": arguments}
                self.calls.append({"id": new_id("call"), "type": "function", "function": function})
                out.append({"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1]}]})
            elif delta.reasoning:
                self.reasoning += delta.reasoning
                out.append({"reasoning_content": delta.reasoning})
            elif delta.content:
                self.content += delta.content
                out.append({"content": delta.content})
        return out

    def finish(self, done: Done) -> str:
        """Why it ended, as the API has it."""
        return "tool_calls" if self.calls and done.finish == "stop" else done.finish

    def message(self) -> dict[str, Any]:
        """The whole answer."""
        out: dict[str, Any] = {"role": "assistant", "content": self.content if self.content or not self.calls else None}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.calls:
            out["tool_calls"] = self.calls
        return out


class Conversation:
    """A chat completion under way."""

    def __init__(self, request: Chat, served: Served, limits: RequestLimits, loop: asyncio.AbstractEventLoop) -> None:
        """In any thread, as a grammar may take its time; `jobs` are then to be submitted. Raises ApiError (400)."""
        self.request, self.served = request, served
        self.answers = AnswerStream(served, loop)
        found = asked(request, served.template)
        self.seed = seed_of(request)
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.n = request.n or 1
        self.choices = [
            Choice(Parser(found.think, tools=found.tools, called=found.called, closed=found.closed))
            for _ in range(self.n)
        ]
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs: logprobs has to be true", param="top_logprobs")
        most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        # After a state that has read something, a conversation goes on with the next turn.
        goes_on = request.state is not None and served.states.get(request.state).tokens > 0
        text = (BLANK if goes_on else "") + found.text
        shift = len(text) - len(found.text)
        tokens = encode(served, text, "messages")
        turns = [end + shift for end in found.ends]  # of a template of the model's own they are not known
        ends = ends_in_tokens(served, text, turns, tokens) if turns else ()
        self.jobs = make_jobs(
            request,
            served,
            [(tokens, ends)],
            self.answers,
            limits,
            seed=self.seed,
            most=min(DEFAULT_TOKENS, limits.tokens) if most is None else most,
            stops=(*found.stops, *stops_of(request.stop)),
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            schema=found.schema,
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.entry.name,
            "system_fingerprint": self.served.digest,
        }

    async def whole(self) -> dict[str, Any]:
        """The response that is no stream. Raises ApiError."""
        async for index, event in self.answers.events():
            choice = self.choices[index]
            if isinstance(event, Piece):
                choice.take(choice.parser.put(event.text))
                choice.tokens += event.tokens
            elif isinstance(event, Done):
                choice.take(choice.parser.end())
        choices = []
        for index, choice in enumerate(self.choices):
            logprobs = {"content": self._rated(choice.tokens), "refusal": None} if self.request.logprobs else None
            finish = choice.finish(self.answers.done[index])
            entry = {"index": index, "message": choice.message(), "logprobs": logprobs, "finish_reason": finish}
            choices.append(entry)
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self.answers.usage(self.n),
            "rwkvflow": {"seed": self.seed, "cached_tokens": self.answers.cached},
        }

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """The response as a stream. Raises ApiError."""
        options = self.request.stream_options
        usage = options is not None and options.include_usage
        begun: set[int] = set()

        def chunk(index: int, delta: dict[str, Any], finish: str | None, tokens: Sequence[Chosen]) -> dict[str, Any]:
            logprobs = {"content": self._rated(tokens), "refusal": None} if self.request.logprobs else None
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**self._head("chat.completion.chunk"), "choices": [choice], **({"usage": None} if usage else {})}

        async for index, event in self.answers.events():
            choice = self.choices[index]
            if index not in begun and not isinstance(event, Read):
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": ""}, None, ())
            if isinstance(event, Piece):
                tokens: Sequence[Chosen] = (*choice.tokens, *event.tokens)
                choice.tokens = []
                deltas = choice.take(choice.parser.put(event.text))
                if not deltas and self.request.logprobs:
                    choice.tokens = list(tokens)
                for number, delta in enumerate(deltas):
                    yield chunk(index, delta, None, tokens if number == 0 else ())
            elif isinstance(event, Done):
                for delta in choice.take(choice.parser.end()):
                    yield chunk(index, delta, None, choice.tokens)
                    choice.tokens = []
                yield chunk(index, {}, choice.finish(event), choice.tokens)
        last = {**self._head("chat.completion.chunk"), "choices": []}
        if usage:
            extra = {"seed": self.seed, "cached_tokens": self.answers.cached}
            yield {**last, "usage": self.answers.usage(self.n), "rwkvflow": extra}

    def _rated(self, tokens: Sequence[Chosen]) -> list[dict[str, Any]]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            piece = self.served.tokenizer.piece(token)
            return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece), "id": token}

        return [
            {**entry(chosen.token, chosen.logprob), "top_logprobs": [entry(*each) for each in chosen.top]}
            for chosen in tokens
        ]
