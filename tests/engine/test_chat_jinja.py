"""The chat template as llama.cpp's own Jinja and transformers render it: the text that the models were trained on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.engine.prompts import ROLES, render, template
from tests.engine import jinja_cpp

HI = [{"role": "user", "content": "hi"}]
SYSTEM = {"role": "system", "content": "Be\r\n\r\n\nbrief.\n"}
ANSWER = {"role": "assistant", "content": "<think>hm\n\nhm</think>\n\nYes?"}
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
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLED = [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": '{"a": 3}'}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
#: Messages, what is asked for besides, and the text.
FORMS: tuple[tuple[list[Any], dict[str, Any], str], ...] = (
    (HI, {}, "User: hi\n\nAssistant:"),
    (HI, {"enable_thinking": False}, "User: hi\n\nAssistant: <think>\n</think>"),
    (HI, {"enable_thinking": True}, "User: hi\n\nAssistant: <think>"),
    ([SYSTEM, *HI], {}, "System: Be\nbrief.\n\nUser: hi\n\nAssistant:"),
    ([*HI, ANSWER, {"role": "user", "content": ""}], {}, "User: hi\n\nAssistant: Yes?\n\nUser:\n\nAssistant:"),
    (HI, {"add_generation_prompt": False}, "User: hi"),
    (PARTS, {}, "User: a\nb\n\nAssistant:"),
    (
        CALLED,
        {"tools": [WEATHER]},
        "System: Tools:\n- weather(city: string, days?: integer|null, unit?: any)\n"
        "Return only a JSON function call.\n\n"
        'User: hi\n\nAssistant: ```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```\n\n'
        'User: Function output:\n{"a": 3}\n\nAssistant:',
    ),
)


@pytest.fixture(scope="session")
def program() -> Path:
    return jinja_cpp.program()


def rendered(program: Path, asked: Sequence[dict[str, Any]]) -> list[Any]:
    """What llama.cpp makes of the template with these values, or {"error"}."""
    lines = "".join(json.dumps({"template": template(), "values": values}) + "\n" for values in asked)
    done = subprocess.run([program], input=lines.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_llama_cpp_renders_the_forms_that_the_models_know(program: Path) -> None:
    asked = [{"messages": messages, "add_generation_prompt": True, **more} for messages, more, _ in FORMS]
    assert rendered(program, asked) == [text for _, _, text in FORMS]


TEXT = st.text(alphabet=st.sampled_from("ab \n\r<>/:`{}\"'\\é漢\t"), max_size=25) | st.sampled_from(
    ["<think>a</think>b", "a</think>", "\r\n\r\n", "User: x\n\nAssistant: y"]
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES)), "content": TEXT | st.none()})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=5), think=st.sampled_from([None, True, False]))
def test_llama_cpp_renders_what_we_do(messages: list[Any], think: bool | None, program: Path) -> None:
    values = {"messages": messages, "add_generation_prompt": True}
    if think is not None:
        values["enable_thinking"] = think
    assert rendered(program, [values]) == [render(messages, think=think, closed=True).text]


def test_llama_cpp_refuses_a_role_that_nobody_knows(program: Path) -> None:
    (found,) = rendered(program, [{"messages": [{"role": "robot", "content": "a"}], "add_generation_prompt": True}])
    assert "unknown role robot" in found["error"]


def test_transformers_renders_the_forms_that_the_models_know() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))  # noqa: S106 - a token of text
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template())
    for messages, more, text in FORMS:
        asked = {"add_generation_prompt": True, **more}
        assert tokenizer.apply_chat_template(messages, tokenize=False, **asked) == text
