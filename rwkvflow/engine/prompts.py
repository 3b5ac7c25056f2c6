"""What a conversation looks like to an RWKV model: the one description of it, for `chat`, the server and templates.

World and G1 models were trained on turns `User: …`, `Assistant: …` and `System: …` with a blank line between them, so
a turn holds no blank line of its own. `render` makes such a text from messages in the shape of OpenAI's API, `template`
the Jinja template that makes the same one, for a GGUF file or a tokenizer_config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SYSTEM, USER, ASSISTANT = "System", "User", "Assistant"
#: Whose turn a message is, by the role that the API gives it.
ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
    "tool": USER,
    "function": USER,
}
BLANK = "\n\n"  # ends a turn
#: An answer ends before one of these: a blank line and the name of whoever speaks next.
STOPS = tuple(f"{BLANK}{name}:" for name in (USER, SYSTEM, ASSISTANT))
THINK, THOUGHT = "<think>", "</think>"
FENCE = "```"  # a call of a function stands between this and `json`, and this
RESULT = "Function output:\n"  # what comes back from a function begins with it
CALL_ONLY = "Return only a JSON function call."
#: How a question asks for more or less thinking, by OpenAI's `reasoning_effort`.
EFFORTS = {"low": " (think a bit)", "medium": " (think)", "high": " (think a lot)"}


@dataclass(frozen=True)
class Prompt:
    """A text for the model. `ends`: where each message's turn is over, in characters, with the blank line behind it."""

    text: str
    ends: tuple[int, ...]


def clean(text: str) -> str:
    """The text as it may stand in a turn: no blank lines, which would end it, and nothing around it."""
    return re.sub(r"\n{2,}", "\n", text.replace("\r\n", "\n")).strip()


def opening(think: bool | None, *, closed: bool = False) -> str:
    """How an answer begins: with a thought (True), after an empty one (False), or as the model likes (None).

    `closed`: with the bracket behind it. The author's prompts leave it to the model, runtimes' templates write it.
    """
    if think is None:
        return ""
    return (f" {THINK}" if think else f" {THINK}\n{THOUGHT}")[: None if closed else -1]


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    think: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    generate: bool = True,
    closed: bool = False,
) -> Prompt:
    """A conversation as a text that ends where the model is to go on; `generate` False: where the last turn ends.

    Messages and tools have the shape of OpenAI's chat API. Raises ValueError for a role or content that is not known.
    """
    turns = [_turn(message) for message in messages]
    if tools:
        described = f"Tools:\n{signatures(tools)}\n{CALL_ONLY}"
        own = bool(turns) and turns[0].startswith(f"{SYSTEM}:")
        turns[: int(own)] = [f"{turns[0]}\n{described}" if own else f"{SYSTEM}: {described}"]
    text, ends = "", []
    for index, turn in enumerate(turns):
        text += turn
        if generate or index + 1 < len(turns):
            text += BLANK
        ends.append(len(text))
    if generate:
        text += f"{ASSISTANT}:{opening(think, closed=closed)}"
    return Prompt(text, tuple(ends))


def signatures(tools: Sequence[Mapping[str, Any]]) -> str:
    """Functions as `- name(argument: type, optional?: type)`, a line each."""
    lines = []
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {}
        required = parameters.get("required") or ()
        arguments = [
            f"{name}{'' if name in required else '?'}: {_type(schema)}"
            for name, schema in (parameters.get("properties") or {}).items()
        ]
        lines.append(f"- {function['name']}({', '.join(arguments)})")
    return "\n".join(lines)


def content_text(content: object) -> str:
    """The text of a message's `content`: a string, a list of parts of type text, or null. Raises ValueError."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError("content is a string or a list of parts")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"content of type {kind!r}: only text can be read")
        parts.append(part["text"])
    return "\n".join(parts)


def without_thoughts(text: str) -> str:
    """An answer without what was thought before it."""
    return text.rpartition(THOUGHT)[2]


def _type(schema: Any) -> str:
    found = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(found, str):
        return found
    return "|".join(found) if isinstance(found, Sequence) and found else "any"


def _turn(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"role {role!r}: known are {', '.join(ROLES)}")
    text = content_text(message.get("content"))
    if role in ("tool", "function"):
        text = RESULT + text
    if role == "assistant":
        text = "\n".join([without_thoughts(text), *map(_call, message.get("tool_calls") or ())])
    text = clean(text)
    return f"{ROLES[role]}: {text}" if text else f"{ROLES[role]}:"


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments") or "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{FENCE}json\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n{FENCE}'


def examples() -> list[tuple[str, str]]:
    """(what it is, the text that a model reads) of a conversation, in each of the ways that it may be asked for."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    longer = [{"role": "system", "content": "Be kind."}, *turns, {"role": "assistant", "content": "Hello."}, *turns]
    parameters = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    return [
        ("a question", render(turns).text),
        ("to think first", render(turns, think=True).text),
        ("not to think", render(turns, think=False).text),
        ("a system text and a second question", render(longer).text),
        ("a function that may be called", render(turns, tools=[tool]).text),
    ]


def template(*, closed: bool = True) -> str:
    """Jinja that makes what `render` does of messages, tools, add_generation_prompt and enable_thinking."""
    quoted = {str(think): json.dumps(opening(think, closed=closed)) for think in (True, False)}
    replaced = {
        "@ROLES@": "{" + ", ".join(f"'{role}': '{name}'" for role, name in ROLES.items()) + "}",
        "@SYSTEM@": SYSTEM,
        "@ASSISTANT@": ASSISTANT,
        "@THOUGHT@": THOUGHT,
        "@FENCE@": FENCE,
        "@RESULT@": json.dumps(RESULT),
        "@CALL_ONLY@": CALL_ONLY,
        "@THINKS@": quoted["True"],
        "@THINKS_NOT@": quoted["False"],
    }
    text = _TEMPLATE
    for name, value in replaced.items():
        text = text.replace(name, value)
    return text


# Every tag eats the white space around it, so what is written is what stands in strings, however trim_blocks is set.
_TEMPLATE = r"""
{%- set roles = @ROLES@ -%}
{%- macro clean(text) -%}
  {%- set kept = namespace(text='') -%}
  {%- for line in text.replace('\r\n', '\n').split('\n') -%}
    {%- if line -%}{%- set kept.text = kept.text ~ ('\n' if kept.text else '') ~ line -%}{%- endif -%}
  {%- endfor -%}
  {{- kept.text.strip() -}}
{%- endmacro -%}
{%- macro text_of(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part.type != 'text' -%}{{- raise_exception('only text can be read') -}}{%- endif -%}
      {{- ('' if loop.first else '\n') ~ part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro call_of(call) -%}
  {%- set function = call.function if call.function is defined else call -%}
  {{- '@FENCE@json\n{"name": "' ~ function.name ~ '", "arguments": ' -}}
  {%- if not function.arguments -%}{{- '{}' -}}
  {%- elif function.arguments is string -%}{{- function.arguments -}}
  {%- else -%}{{- function.arguments | tojson -}}
  {%- endif -%}
  {{- '}\n@FENCE@' -}}
{%- endmacro -%}
{%- macro tools_of(tools) -%}
  {{- 'Tools:\n' -}}
  {%- for tool in tools -%}
    {%- set function = tool.function if tool.function is defined else tool -%}
    {{- '- ' ~ function.name ~ '(' -}}
    {%- if function.parameters and function.parameters.properties -%}
      {%- set required = function.parameters.required or [] -%}
      {%- for name, schema in function.parameters.properties.items() -%}
        {{- ('' if loop.first else ', ') ~ name ~ ('' if name in required else '?') ~ ': ' -}}
        {%- if schema is not mapping or not schema.type -%}{{- 'any' -}}
        {%- elif schema.type is string -%}{{- schema.type -}}
        {%- else -%}{{- schema.type | join('|') -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- ')\n' -}}
  {%- endfor -%}
  {{- '@CALL_ONLY@' -}}
{%- endmacro -%}
{%- set has_tools = tools is defined and tools -%}
{%- if has_tools and not (messages and roles[messages[0].role] == '@SYSTEM@') -%}
  {{- '@SYSTEM@: ' ~ tools_of(tools) -}}
  {%- if messages or add_generation_prompt -%}{{- '\n\n' -}}{%- endif -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role not in roles -%}{{- raise_exception('unknown role ' ~ message.role) -}}{%- endif -%}
  {%- set turn = namespace(text=text_of(message.content)) -%}
  {%- if message.role in ['tool', 'function'] -%}{%- set turn.text = @RESULT@ ~ turn.text -%}{%- endif -%}
  {%- if message.role == 'assistant' -%}
    {%- set turn.text = turn.text.split('@THOUGHT@')[-1] -%}
    {%- if message.tool_calls is defined and message.tool_calls -%}
      {%- for call in message.tool_calls -%}{%- set turn.text = turn.text ~ '\n' ~ call_of(call) -%}{%- endfor -%}
    {%- endif -%}
  {%- endif -%}
  {%- set turn.text = clean(turn.text) -%}
  {{- roles[message.role] ~ ':' ~ (' ' ~ turn.text if turn.text else '') -}}
  {%- if loop.first and has_tools and roles[message.role] == '@SYSTEM@' -%}{{- '\n' ~ tools_of(tools) -}}{%- endif -%}
  {%- if not loop.last or add_generation_prompt -%}{{- '\n\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '@ASSISTANT@:' -}}
  {%- if enable_thinking is defined and enable_thinking is not none -%}
    {{- @THINKS@ if enable_thinking else @THINKS_NOT@ -}}
  {%- endif -%}
{%- endif -%}
""".strip()
