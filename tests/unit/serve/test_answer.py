"""Thoughts, text and calls are told apart, however an answer is cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.serve.openai.answer import Delta, Parser

TOOLS = ("weather",)
CALL = '```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```'


def parts(pieces: list[str], options: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    parser = Parser(**options)
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.put(piece)] + parser.end()
    assert Delta() not in deltas
    reasoning = "".join(delta.reasoning for delta in deltas)
    return reasoning, "".join(delta.content for delta in deltas), [d.call for d in deltas if d.call is not None]


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        (" Hello there", {}, ("", "Hello there", [])),
        (" <think>\nhm\n</think>\n\nYes.", {}, ("hm\n", "Yes.", [])),
        (" <thin air>", {}, ("", "<thin air>", [])),
        (">\nhm</think> Yes.", {"think": True}, ("hm", "Yes.", [])),
        (">\nnever ends </thi", {"think": True}, ("never ends </thi", "", [])),
        (">\n\nYes. </think>", {"think": False}, ("", "Yes. </think>", [])),
        ("\nhm</think>Yes.", {"think": True, "closed": True}, ("hm", "Yes.", [])),
        (" Yes.", {"think": False, "closed": True}, ("", "Yes.", [])),
        (f" {CALL}", {"tools": TOOLS}, ("", "", [("weather", '{"city": "Oslo"}')])),
        (f" {CALL}", {}, ("", CALL, [])),
        (f"<think>hm</think>\n{CALL}", {"tools": TOOLS}, ("hm", "", [("weather", '{"city": "Oslo"}')])),
        (f"See: {CALL}", {"tools": TOOLS}, ("", f"See: {CALL}", [])),
        (CALL.replace("weather", "other"), {"tools": TOOLS}, ("", CALL.replace("weather", "other"), [])),
        ("```json\n{", {"tools": TOOLS}, ("", "```json\n{", [])),
        ("```js", {"tools": TOOLS}, ("", "```js", [])),
        ('{"name": "weather", "arguments": {}}', {"tools": TOOLS, "called": True}, ("", "", [("weather", "{}")])),
        ('{"name": "wea', {"tools": TOOLS, "called": True}, ("", '{"name": "wea', [])),
        (
            '```json\n[{"name": "weather"}, {"name": "weather", "arguments": {"a": "é"}}]\n```\nDone',
            {"tools": TOOLS},
            ("", "Done", [("weather", "{}"), ("weather", '{"a": "é"}')]),
        ),
        ("", {"think": True}, ("", "", [])),
    ],
)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_pieces_do_not_matter(text: str, options: dict[str, Any], wanted: Any, data: st.DataObject) -> None:
    assert parts([text], options) == wanted
    assert parts(list(text), options) == wanted
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert parts([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], options) == wanted


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "thi", ">", " ", "\n", "a", "```json", "```", "{}"]), max_size=8
    ),
    think=st.sampled_from([None, True, False]),
    tools=st.sampled_from([(), TOOLS]),
)
def test_nothing_is_lost_or_held_for_ever(pieces: list[str], think: bool | None, tools: tuple[str, ...]) -> None:
    text = "".join(pieces)
    reasoning, content, calls = parts(pieces, {"think": think, "tools": tools})
    assert (reasoning, content, calls) == parts([text], {"think": think, "tools": tools})
    for mark in ("<think>", "</think>", ">", "<"):
        text, reasoning, content = (each.replace(mark, "") for each in (text, reasoning, content))
    assert "".join((reasoning + content).split()) == "".join(text.split())
