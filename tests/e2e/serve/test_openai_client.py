"""OpenAI's own client, unchanged, gets what it expects."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import openai
import pytest
from jsonschema import validate
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionTokenLogprob
from openai.types.responses import Response

from rwkvflow.engine import Model
from rwkvflow.engine.sampling import Sampling
from rwkvflow.engine.session import generate
from rwkvflow.worker.model.tokenizers import Bytes

from .conftest import Running

MODEL = "rwkv7-demo-q8_0"
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Once there was a fox."}]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def alone(models: Any, library: Any) -> Any:
    with Model(models[MODEL], library) as model:
        yield model


def test_models(client: openai.OpenAI, models: dict[str, Any]) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == list(models)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("absent")
    assert refused.value.code == "model_not_found"


def test_a_completion_is_what_generate_writes(client: openai.OpenAI, alone: Model) -> None:
    for seed, temperature in ((1, 0.0), (2, 1.0), (3, 0.7)):
        sampling = Sampling(temperature=temperature, top_p=0.9, presence=0.2, frequency=0.1)
        wanted = "".join(generate(alone, "Once there", Bytes(), max_tokens=40, sampling=sampling, seed=seed))
        options: Any = {
            "model": MODEL, "prompt": "Once there", "max_tokens": 40, "seed": seed, "temperature": temperature,
            "top_p": 0.9, "presence_penalty": 0.2, "frequency_penalty": 0.1,
        }  # fmt: skip
        answer = client.completions.create(**options)
        assert answer.choices[0].text == wanted
        assert answer.choices[0].finish_reason == "length"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 40)
        stream = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == wanted
        assert stream[-1].usage == answer.usage
        assert all(chunk.usage is None for chunk in stream[:-1])


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, seed=5, max_tokens=6)
    singles = [
        client.completions.create(model=MODEL, prompt=prompt, seed=seed, max_tokens=6).choices[0].text
        for prompt in ("a", "b")
        for seed in (5, 6)
    ]
    assert [choice.text for choice in answer.choices] == singles
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    tokens = client.completions.create(model=MODEL, prompt=[[97], [98]], n=2, seed=5, max_tokens=6)
    assert [choice.text for choice in tokens.choices] == singles
    echoed = client.completions.create(model=MODEL, prompt="a", seed=5, max_tokens=6, echo=True)
    assert echoed.choices[0].text == "a" + singles[0]


def test_stop_texts_leak_nowhere(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "Once there was ", "seed": 3, "max_tokens": 80, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text
    for stop in (whole[10:14], whole[30:31], whole[20:50]):
        wanted = whole[: whole.index(stop)]
        answer = client.completions.create(**options, stop=stop).choices[0]
        assert (answer.text, answer.finish_reason) == (wanted, "stop")
        chunks = list(client.completions.create(**options, stop=[stop, "never"], stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_models_own(client: openai.OpenAI, alone: Model) -> None:
    options: Any = {"model": MODEL, "prompt": "Once", "seed": 3, "max_tokens": 5}
    answer = client.completions.create(**options, logprobs=3).choices[0]
    logits, state = alone.eval_sequence(list(b"Once"))
    assert "".join(answer.logprobs.tokens) == answer.text
    for token, logprob, top in zip(
        answer.logprobs.tokens, answer.logprobs.token_logprobs, answer.logprobs.top_logprobs, strict=True
    ):
        values = logits.astype(np.float64)
        wanted = values - values.max() - math.log(np.exp(values - values.max()).sum())
        assert logprob == pytest.approx(wanted[ord(token)], abs=1e-9)
        assert list(top.values()) == pytest.approx(sorted(wanted)[:-4:-1], abs=1e-9)
        logits, state = alone.eval(ord(token), state)
    chat = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=6, seed=1, logprobs=True, top_logprobs=2)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 6
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)
    said = b""
    for entry in content:
        assert entry.bytes is not None
        said += bytes(entry.bytes)
    assert said.decode().lstrip() == chat.choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=6, seed=1, logprobs=True, top_logprobs=2, stream=True
        )
    )
    told: list[ChatCompletionTokenLogprob] = []
    for chunk in chunks:
        assert chunk.choices[0].logprobs is not None
        told += chunk.choices[0].logprobs.content or []
    assert [entry.model_dump() for entry in told] == [entry.model_dump() for entry in content]


def test_chat_and_its_stream_helper(client: openai.OpenAI) -> None:
    options: Any = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, *HI],
        "seed": 9,
        "max_tokens": 400,
        "stop": ".",
    }
    answer = client.chat.completions.create(**options)
    assert answer.choices[0].message.content
    with client.chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == answer.choices[0].message.content
    assert final.usage == answer.usage
    assert final.choices[0].finish_reason == answer.choices[0].finish_reason
    again = client.chat.completions.create(**options)
    assert again.choices == answer.choices
    assert again.usage == answer.usage


def test_thinking_is_told_apart(client: openai.OpenAI) -> None:
    """The demo model does not think; with a bias it says `>` and never closes, so all of it is a thought."""
    options: Any = {"model": MODEL, "messages": HI, "seed": 2, "max_tokens": 12}
    thought = client.chat.completions.create(**options, reasoning_effort="medium").choices[0].message
    assert thought.content == ""
    assert thought.reasoning_content
    said = client.chat.completions.create(**options, extra_body={"enable_thinking": False}).choices[0].message
    assert said.content
    assert not hasattr(said, "reasoning_content")


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def test_an_answer_fits_its_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, response_format=form, seed=seed, max_tokens=200
        ).choices[0]
        assert answer.finish_reason == "stop"
        assert answer.message.content is not None
        validate(json.loads(answer.message.content), CITY)
    form = {"type": "json_object"}
    bound = client.chat.completions.create(model=MODEL, messages=HI, response_format=form, seed=1, max_tokens=30)
    assert bound.choices[0].message.content is not None
    assert bound.choices[0].message.content.startswith("{")


def test_a_grammar_of_ones_own(client: openai.OpenAI) -> None:
    grammar = 'root ::= ("yes" | "no") "!"'
    answer = client.completions.create(model=MODEL, prompt="So? ", extra_body={"grammar": grammar}, seed=1)
    assert answer.choices[0].text in ("yes!", "no!")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {"a": {"typ": "string"}}}, "properties.a.typ"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "https://example.invalid/x"}, "example.invalid"),
    ],
)
def test_what_a_schema_cannot_be_held_to_is_named(client: openai.OpenAI, schema: Any, words: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=HI, response_format=form)
    assert words in refused.value.message


def test_a_call_that_is_required(client: openai.OpenAI) -> None:
    options: Any = {
        "model": MODEL,
        "messages": HI,
        "tools": [TOOL],
        "tool_choice": "required",
        "seed": 4,
        "max_tokens": 200,
    }
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    validate(json.loads(call.function.arguments), CITY)
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 3}'}
    asked: list[Any] = [*HI, choice.message.model_dump(exclude_none=True), result]
    assert client.chat.completions.create(model=MODEL, messages=asked, tools=[TOOL], max_tokens=5).choices


def said(response: Response) -> tuple[str, str]:
    """What was thought and what was said."""
    parts = {"reasoning_text": "", "output_text": ""}
    for item in response.output:
        for part in getattr(item, "content", None) or ():
            parts[part.type] += part.text
    return parts["reasoning_text"], parts["output_text"]


def test_responses_say_what_chat_does(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=HI, seed=5, max_tokens=30)
    more: Any = {"extra_body": {"seed": 5}, "max_output_tokens": 30}
    answer = client.responses.create(model=MODEL, input="Once there was a fox.", **more)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None
    assert chat.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    wanted = "incomplete" if chat.choices[0].finish_reason == "length" else "completed"
    assert answer.status == wanted
    # The same with the turns as items, and as a stream whose last word is the whole.
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Once there was a fox."}]}]
    assert client.responses.create(model=MODEL, input=items, **more).output_text == answer.output_text
    events = list(client.responses.create(model=MODEL, input=items, stream=True, **more))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == answer.output_text
    # The next turn: what was said goes in as it came out.
    turns: Any = [*items, *(item.model_dump() for item in answer.output), {"role": "user", "content": "And then?"}]
    spoken: Any = [*HI, {"role": "assistant", "content": answer.output_text}, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=MODEL, messages=spoken, seed=1, max_tokens=9)
    more["extra_body"] = {"seed": 1}
    assert said(client.responses.create(model=MODEL, input=turns, **{**more, "max_output_tokens": 9}))[1] == (
        second.choices[0].message.content
    )


def test_responses_think_call_and_fit(client: openai.OpenAI) -> None:
    more: Any = {"extra_body": {"seed": 2}, "max_output_tokens": 12}
    thought = client.responses.create(model=MODEL, input="Once there was a fox.", reasoning={"effort": "low"}, **more)
    assert [item.type for item in thought.output] == ["reasoning"]
    events = list(
        client.responses.create(
            model=MODEL, input="Once there was a fox.", reasoning={"effort": "low"}, stream=True, **more
        )
    )
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == said(thought)[0] != ""
    tool: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    options: Any = {"model": MODEL, "input": "Hi", "tools": [tool], "extra_body": {"seed": 4}}
    choices: tuple[Any, ...] = ("required", {"type": "function", "name": "weather"})
    for choice in choices:
        (call,) = client.responses.create(**options, tool_choice=choice).output
        assert call.type == "function_call"
        validate(json.loads(call.arguments), CITY)
        back: Any = [
            {"role": "user", "content": "Hi"},
            call.model_dump(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "3 degrees"},
        ]
        assert client.responses.create(**{**options, "input": back, "max_output_tokens": 5}).output
    events = list(client.responses.create(**options, tool_choice="required", stream=True))
    assert "response.function_call_arguments.done" in [event.type for event in events]
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": CITY, "strict": True}}
    answer = client.responses.create(model=MODEL, input="Hi", text=form, extra_body={"seed": 1})
    validate(json.loads(answer.output_text), CITY)
    assert answer.status == "completed"
    with client.responses.stream(model=MODEL, input="Hi", text=form, extra_body={"seed": 1}) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == answer.output_text
    for wrong, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"background": True}, "background"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**{"model": MODEL, "input": "Hi", **wrong})  # type: ignore[call-overload]
        assert str(refused.value.param).startswith(param)


def test_embeddings_in_both_encodings(client: openai.OpenAI, alone: Model) -> None:
    _, hidden = alone.eval_sequences([list(b"fox")], [None], [None] * 3, [], [2])
    answer = client.embeddings.create(model=MODEL, input=["fox", "a hen"])  # base64, as the client asks for
    assert np.array(answer.data[0].embedding, np.float32).tobytes() == hidden[0].tobytes()
    plain = client.embeddings.create(model=MODEL, input="fox", encoding_format="float")
    assert np.array(plain.data[0].embedding, np.float32).tobytes() == hidden[0].tobytes()
    assert plain.usage.prompt_tokens == 3
    raw = client.post(
        "/embeddings", body={"model": MODEL, "input": [102, 111, 120], "encoding_format": "base64"}, cast_to=object
    )
    assert base64.b64decode(raw["data"][0]["embedding"]) == hidden[0].tobytes()  # type: ignore[index]


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    for options, kind, param in (
        ({"temperature": -1.0}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"model": "absent"}, openai.NotFoundError, "model"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias"),
        ({"messages": [{"role": "robot", "content": "a"}]}, openai.BadRequestError, "messages"),
    ):
        with pytest.raises(kind) as refused:
            client.chat.completions.create(**{"model": MODEL, "messages": HI, **options})  # type: ignore[call-overload]
        assert refused.value.param == param


def test_a_bias_decides(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="a", max_tokens=4, logit_bias={"122": 100})
    assert answer.choices[0].text == "zzzz"
