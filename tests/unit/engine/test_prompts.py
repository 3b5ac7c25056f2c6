"""Conversations look as the models' training texts did, and the template for other programs renders the very same."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rwkvflow.cli import cli
from rwkvflow.engine import prompts
from rwkvflow.engine.prompts import clean, render, template

ROOT = Path(__file__).resolve().parents[3]


@functools.cache
def compiled(source: str, blocks: bool) -> Template:
    """As transformers renders templates (and, without `blocks`, as others do)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=blocks, lstrip_blocks=blocks)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


def jinja(source: str, blocks: bool = True, **values: Any) -> str:
    """What a program makes of the template."""
    return compiled(source, blocks).render(**values)


HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}, "unit": {}},
            "required": ["city"],
        },
    },
}
CALLED = [
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": '{"degrees": 3}'},
]


@pytest.mark.parametrize(
    ("messages", "options", "text"),
    [
        (HI, {}, "User: hi\n\nAssistant:"),
        (HI, {"think": True}, "User: hi\n\nAssistant: <think"),
        (HI, {"think": False}, "User: hi\n\nAssistant: <think>\n</think"),
        (HI, {"think": True, "closed": True}, "User: hi\n\nAssistant: <think>"),
        (HI, {"think": False, "closed": True}, "User: hi\n\nAssistant: <think>\n</think>"),
        (
            [{"role": "system", "content": "Be\r\n\r\n\nbrief.\n"}, *HI],
            {},
            "System: Be\nbrief.\n\nUser: hi\n\nAssistant:",
        ),
        (
            [*HI, {"role": "assistant", "content": "<think>hm\n\nhm</think>\n\nYes?"}, {"role": "user", "content": ""}],
            {},
            "User: hi\n\nAssistant: Yes?\n\nUser:\n\nAssistant:",
        ),
        (HI, {"generate": False}, "User: hi"),
        (
            CALLED,
            {"tools": [WEATHER]},
            "System: Tools:\n- weather(city: string, days?: integer|null, unit?: any)\n"
            "Return only a JSON function call.\n\nUser: Weather in Oslo?\n\n"
            'Assistant: ```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```'
            '\n\nUser: Function output:\n{"degrees": 3}\n\nAssistant:',
        ),
    ],
)
def test_the_forms_that_the_models_know(messages: list[Any], options: dict[str, Any], text: str) -> None:
    prompt = render(messages, **options)
    assert prompt.text == text
    assert all(prompt.text[:end].endswith("\n\n") or end == len(text) for end in prompt.ends)


TEXT = st.text(alphabet=st.sampled_from("ab \n\r<>/:`{}\"'\\é漢\t"), max_size=25) | st.sampled_from(
    ["<think>a</think>b", "a</think>", "\r\n\r\n", "User: x\n\nAssistant: y", "</think></think>\n"]
)
CONTENT = TEXT | st.none() | st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), max_size=3)
CALL = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {
                "name": st.sampled_from(["f", "look_up"]),
                "arguments": st.sampled_from(['{"a": 1}', '{\n\n"a": "é"}', {}, {"a": "é", "b": [1]}]),
            }
        )
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(prompts.ROLES)), "content": CONTENT},
    optional={"tool_calls": st.lists(CALL, max_size=2)},
)
TOOL = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "look_up"])},
    optional={
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "properties": st.dictionaries(
                    st.sampled_from(["a", "b", "items"]),
                    st.sampled_from([{}, {"type": "string"}, {"type": ["null", "x"]}]),
                ),
                "required": st.just(["a"]),
            },
        )
    },
).map(lambda function: {"type": "function", "function": function})


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(MESSAGE, max_size=6),
    tools=st.lists(TOOL, max_size=2),
    think=st.sampled_from([None, True, False]),
    generate=st.booleans(),
    closed=st.booleans(),
    blocks=st.booleans(),
)
def test_the_template_renders_the_same(
    messages: list[Any], tools: list[Any], think: bool | None, generate: bool, closed: bool, blocks: bool
) -> None:
    own = render(messages, think=think, tools=tools, generate=generate, closed=closed)
    values: dict[str, Any] = {"messages": messages, "add_generation_prompt": generate}
    if think is not None:
        values["enable_thinking"] = think
    if tools:
        values["tools"] = tools
    assert jinja(template(closed=closed), blocks, **values) == own.text
    # Nothing in a turn ends it: there are as many turns as messages.
    turns = len(messages) + bool(tools and not (messages and prompts.ROLES[messages[0]["role"]] == "System"))
    assert own.text.count("\n\n") == (turns if generate else max(0, turns - 1))


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_a_clean_text_stays_as_it_is(text: str) -> None:
    if "\r\r" not in text:  # of several before a line's end the last one goes, as templates have it
        assert clean(clean(text)) == clean(text)
    assert "\n\n" not in clean(text)


@pytest.mark.parametrize(
    "message",
    [{"role": "robot", "content": "a"}, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
)
def test_what_is_not_known_is_refused_by_both(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"robot|image_url"):
        render([message])
    with pytest.raises(TemplateError, match=r"robot|text"):
        jinja(template(), messages=[message], add_generation_prompt=True)


def test_inspect_shows_what_the_model_reads() -> None:
    """The prompts of the one description, as text and as JSON; in all of them the template says the same."""
    source = str(ROOT / "recipes" / "demo" / "rwkv7-demo.pth")
    told = json.loads(CliRunner().invoke(cli, ["inspect", source, "--prompts", "--json"]).output)["prompts"]
    assert told["a question"] == "User: Hi\n\nAssistant:"
    assert told["to think first"] == "User: Hi\n\nAssistant: <think"
    assert told["not to think"] == "User: Hi\n\nAssistant: <think>\n</think"
    assert "- weather(city: string)" in told["a function that may be called"]
    assert told["stops"] == list(prompts.STOPS)
    shown = CliRunner().invoke(cli, ["inspect", source, "--prompts"]).output
    assert 'a question: "User: Hi\\n\\nAssistant:"' in shown
    assert "prompts" not in json.loads(CliRunner().invoke(cli, ["inspect", source, "--json"]).output)
