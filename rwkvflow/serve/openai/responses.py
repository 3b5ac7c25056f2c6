"""POST /v1/responses: OpenAI's newer form of a conversation. Nothing is stored, so each request brings all its turns.

A request becomes one of chat; what comes of it is told in events, and the response that is no stream is the last one's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic import ValidationError

from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.openai.answer import new_id
from rwkvflow.serve.openai.chat import Conversation
from rwkvflow.serve.openai.schema import Chat, Respond
from rwkvflow.serve.openai.work import RequestLimits
from rwkvflow.serve.shelf import Served

_SAME = """
model stream seed temperature top_p top_k presence_penalty frequency_penalty penalty_decay tool_choice state grammar
"""
SAME = tuple(_SAME.split())
TEXTS = ("input_text", "output_text", "text", "reasoning_text")


def as_chat(request: Respond) -> Chat:
    """The request of chat that says the same. Raises ApiError (400)."""
    if request.previous_response_id is not None:
        message = "previous_response_id: nothing is stored here; send the turns before, or begin from a state"
        raise ApiError(400, message, param="previous_response_id", code="not_stored")
    body: dict[str, Any] = {name: value for name in SAME if (value := getattr(request, name)) is not None}
    body["messages"] = messages_of(request)
    body["max_completion_tokens"] = request.max_output_tokens
    if request.reasoning is not None:
        body["reasoning_effort"] = request.reasoning.effort
    if request.tools:
        body["tools"] = [_tool(tool, number) for number, tool in enumerate(request.tools)]
    if isinstance(request.tool_choice, dict) and "function" not in request.tool_choice:
        body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.get("name")}}
    if request.text is not None and request.text.format is not None:
        form = request.text.format.model_dump(by_alias=True, exclude_none=True)
        kind = form.pop("type")
        body["response_format"] = {"type": kind, **({"json_schema": form} if kind == "json_schema" else {})}
    try:
        return Chat.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ApiError(400, f"input: {first['msg']}", param="input") from None


def messages_of(request: Respond) -> list[dict[str, Any]]:
    """The turns as chat has them. Raises ApiError (400)."""
    out: list[dict[str, Any]] = []
    if request.instructions:
        out.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*out, {"role": "user", "content": request.input}]
    for number, item in enumerate(request.input):
        kind = item.get("type", "message")
        try:
            if kind == "message":
                out.append({"role": item["role"], "content": _text(item["content"])})
            elif kind == "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                out.append({"role": "assistant", "content": None, "tool_calls": [call]})
            elif kind == "function_call_output":
                out.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
            elif kind != "reasoning":  # earlier thoughts are not read again
                raise ValueError(f"items of type {kind!r} are not known")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ApiError(400, f"input.{number}: {what}", param=f"input.{number}") from None
    if not out:
        raise ApiError(400, "input: there is nothing in it", param="input")
    return out


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("content is a string or a list of parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in TEXTS or not isinstance(part.get("text"), str):
            raise ValueError("only parts of text can be read")
    return "\n".join(part["text"] for part in content)


def _tool(tool: Mapping[str, Any], number: int) -> dict[str, Any]:
    """As chat has it, with the function in a field of its own."""
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise ApiError(400, f"tools.{number}: only functions with a name are known", param=f"tools.{number}")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


class Responding:
    """A response under way."""

    def __init__(
        self, request: Respond, served: Served, limits: RequestLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        """In any thread, as a grammar may take its time; `jobs` are then to be submitted. Raises ApiError (400)."""
        self.request = request
        self._chat = Conversation(as_chat(request), served, limits, loop)
        self.answers, self.jobs = self._chat.answers, self._chat.jobs
        self.id = new_id("resp")
        self._number = 0
        self._output: list[dict[str, Any]] = []

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        event = {"type": f"response.{kind}", "sequence_number": self._number, **more}
        self._number += 1
        return event

    def _response(self, status: str, *, error: ApiError | None = None) -> dict[str, Any]:
        request, served = self.request, self._chat.served
        usage = None
        if status in ("completed", "incomplete"):
            counted = self.answers.usage()
            usage = {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": self.answers.cached, "cache_write_tokens": 0},
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            }
        form = None if request.text is None else request.text.format
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._chat.created,
            "status": status,
            "error": None if error is None else {"code": "server_error", "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": served.entry.name,
            "output": list(self._output),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": None if request.reasoning is None else {"effort": request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 0.7 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": usage,
            "metadata": request.metadata or {},
            "rwkvflow": {"seed": self._chat.seed},
        }

    async def whole(self) -> dict[str, Any]:
        """The response that is no stream. Raises ApiError."""
        last: dict[str, Any] = {}
        async for event in self.pieces():
            last = event
        found: dict[str, Any] = last["response"]
        return found

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """The events. Raises ApiError."""
        yield self._event("created", response=self._response("in_progress"))
        yield self._event("in_progress", response=self._response("in_progress"))
        part: _OutputPart | None = None
        finish = "stop"
        async for chunk in self._chat.pieces():
            for choice in chunk["choices"]:
                finish = choice["finish_reason"] or finish
                delta = choice["delta"]
                for call in delta.get("tool_calls", ()):
                    for event in self._closed(part):
                        yield event
                    part = None
                    for event in self._call(call):
                        yield event
                for name in ("reasoning_content", "content"):
                    if not delta.get(name):
                        continue
                    if part is None or part.name != name:
                        for event in self._closed(part):
                            yield event
                        part = _OutputPart(name)
                        for event in self._opened(part):
                            yield event
                    part.text += delta[name]
                    yield self._event(f"{part.kind}.delta", **self._place(part), delta=delta[name], **part.more())
        for event in self._closed(part):
            yield event
        status = "incomplete" if finish == "length" else "completed"
        yield self._event(status, response=self._response(status))

    def _place(self, part: _OutputPart) -> dict[str, Any]:
        return {"item_id": part.id, "output_index": len(self._output), "content_index": 0}

    def _opened(self, part: _OutputPart) -> list[dict[str, Any]]:
        begun = {**part.item("in_progress"), "content": []}
        events = [self._event("output_item.added", output_index=len(self._output), item=begun)]
        return [*events, self._event("content_part.added", **self._place(part), part=part.content(""))]

    def _closed(self, part: _OutputPart | None) -> list[dict[str, Any]]:
        """The last words on a part, which then is one of the output."""
        if part is None:
            return []
        place, item = self._place(part), part.item("completed")
        events = [
            self._event(f"{part.kind}.done", **place, text=part.text, **part.more()),
            self._event("content_part.done", **place, part=part.content(part.text)),
            self._event("output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        return events

    def _call(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        index, name, arguments = len(self._output), call["function"]["name"], call["function"]["arguments"]
        item = {"id": new_id("fc"), "type": "function_call", "call_id": call["id"], "name": name}
        done = {**item, "arguments": arguments, "status": "completed"}
        place = {"item_id": item["id"], "output_index": index}
        events = [
            self._event(
                "output_item.added", output_index=index, item={**item, "arguments": "", "status": "in_progress"}
            ),
            self._event("function_call_arguments.delta", **place, delta=arguments),
            self._event("function_call_arguments.done", **place, name=name, arguments=arguments),
            self._event("output_item.done", output_index=index, item=done),
        ]
        self._output.append(done)
        return events


class _OutputPart:
    """What is said, or thought, as it comes. `name`: the field of a chunk of chat that it comes in."""

    def __init__(self, name: str) -> None:
        self.name, self.text = name, ""
        self.thought = name == "reasoning_content"
        self.kind = "reasoning_text" if self.thought else "output_text"
        self.id = new_id("rs" if self.thought else "msg")

    def more(self) -> dict[str, Any]:
        """What events of a text have besides."""
        return {} if self.thought else {"logprobs": []}

    def content(self, text: str) -> dict[str, Any]:
        """The part of an item that is its text."""
        return {"type": self.kind, "text": text, **({} if self.thought else {"annotations": [], "logprobs": []})}

    def item(self, status: str) -> dict[str, Any]:
        """The item of the output."""
        content = [self.content(self.text)]
        if self.thought:
            return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status}
        return {"id": self.id, "type": "message", "role": "assistant", "content": content, "status": status}
