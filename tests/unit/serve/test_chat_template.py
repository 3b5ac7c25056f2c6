"""The chat template of a GGUF: ours is known by its text, a stranger's is rendered apart, in bounds, and never more."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import UsageError
from rwkvflow.base.jinja_apart import Bounds, TemplateError
from rwkvflow.engine.prompts import template
from rwkvflow.serve import chat_template as module
from rwkvflow.serve.chat_template import ChatTemplate, TemplatedChat, known, template_of
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.openai.chat import asked
from rwkvflow.serve.openai.schema import Chat

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking %}{{ '<think>' }}{%- endif %}{%- endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def with_template(path: Path, text: bytes | None, kind: int = 8) -> Path:
    """A GGUF of that one pair."""
    key = b"tokenizer.chat_template"
    value = b"" if text is None else struct.pack("<Q", len(text)) + text if kind == 8 else text
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, int(text is not None)) + (b"" if text is None else pair))
    return path


@pytest.fixture(scope="module")
def chatml() -> ChatTemplate:
    return ChatTemplate(CHATML, "it")


def test_ours_and_a_name_of_it_are_known(tmp_path: Path) -> None:
    for text in (template(), template(closed=False), template() + "\n", "rwkv-world"):
        assert known(text)
        assert template_of(with_template(tmp_path / "m.gguf", text.encode())) is None
    assert template_of(with_template(tmp_path / "m.gguf", None)) is None
    assert not known(CHATML)
    assert not known(template().replace("User", "Human"))
    (tmp_path / "m.bin").write_bytes(b"fmgg")
    assert template_of(tmp_path / "m.bin") is None


def test_a_strangers_is_taken_from_the_file_or_from_one_of_its_own(tmp_path: Path) -> None:
    path = with_template(tmp_path / "m.gguf", CHATML.encode())
    found = template_of(path)
    assert found is not None
    assert found.text == CHATML
    assert template_of(path, "rwkv") is None
    (tmp_path / "mine.jinja").write_text(CHATML, encoding="utf-8")
    named = template_of(with_template(tmp_path / "m.gguf", b"rwkv-world"), str(tmp_path / "mine.jinja"))
    assert named is not None
    assert named.text == CHATML
    with pytest.raises(UsageError, match="neither auto nor rwkv nor a text file"):
        template_of(path, str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is no text"):
        template_of(with_template(tmp_path / "m.gguf", struct.pack("<I", 7), 4))


def test_it_is_rendered_with_what_others_render_it_with(chatml: ChatTemplate) -> None:
    assert chatml.render(HI) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.render(HI, think=True).endswith("assistant\n<think>")
    assert chatml.render(HI, generate=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert chatml.stops == ("<|im_end|>\n<|im_start|>user\n",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ messages", "line 1"),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "no user"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(1) }}", "."),
        ("{% include '/etc/passwd' %}", "."),
        ("{{ 'x' * 2000000 }}", "MiB of text"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took more than 1 s"),
        ("a name of a template", "leaves out what is asked"),
        ("Hi" * 600_000, "characters are no template"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_a_remedy(text: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOUNDS", Bounds(seconds=1, characters=1 << 20))
    with pytest.raises(UsageError, match=why) as caught:
        ChatTemplate(text, "it")
    assert "--template rwkv" in str(caught.value.remedy)


class Talker:
    """A session that says the same each time, and keeps what it was fed."""

    def __init__(self, answer: str) -> None:
        self.answer, self.fed, self.resets = answer, [""], 0
        self.stops: Sequence[str] = ()

    def feed(self, text: str) -> None:
        self.fed[-1] += text

    def reset(self) -> None:
        self.resets += 1
        self.fed.append("")

    def generate(self, most: int, stops: Sequence[str]) -> Iterator[str]:
        self.stops = stops
        self.feed(self.answer)
        yield from (self.answer[:2], self.answer[2:])


def test_a_conversation_goes_on_where_it_was(chatml: ChatTemplate) -> None:
    talker: Any = Talker("Yes.")
    talk = TemplatedChat(talker, chatml)
    talk.system("Be kind.")
    assert "".join(talk.ask("Hi")) == "Yes."
    assert "".join(talk.ask("And?", stops=["!"])) == "Yes."
    assert talker.stops == ("<|im_end|>\n<|im_start|>user\n", "!")
    assert talker.resets == 0
    assert talker.fed == [chatml.render(talk.messages, generate=False).removesuffix("<|im_end|>\n")]
    other: Any = Talker("  Yes. ")  # which the template would write otherwise
    talk = TemplatedChat(other, chatml)
    for text in ("Hi", "And?"):
        assert "".join(talk.ask(text)) == "Yes. "
    assert other.resets == 1
    assert other.fed[1] == chatml.render(talk.messages[:-1]) + other.answer


def test_a_request_is_written_by_it(chatml: ChatTemplate) -> None:
    found = asked(Chat(messages=HI), chatml)
    assert (found.text, found.stops, found.think) == (chatml.render(HI), chatml.stops, None)
    found = asked(Chat(messages=HI, enable_thinking=True), chatml)
    assert (found.think, found.closed) == (True, True)
    tools = [{"type": "function", "function": {"name": "f"}}]
    for more in ({"tools": tools}, {"reasoning_effort": "low"}, {"state": "x"}):
        with pytest.raises(ApiError, match="chat template of its own"):
            asked(Chat(messages=HI, **more), chatml)
    with pytest.raises(ApiError, match="the model's chat template, line 1: no system"):
        asked(
            Chat(messages=[{"role": "system", "content": "x"}]),
            ChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}Hi", "it"),
        )


def test_errors_are_of_one_kind() -> None:
    assert issubclass(TemplateError, ValueError)
