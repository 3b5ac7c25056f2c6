"""The chat template that a GGUF brings: a known one is our own description of prompts, another is rendered apart.

A template is Jinja of a stranger's. One whose text is what rwkvflow writes, or llama.cpp's name of RWKV's, says nothing
that engine/prompts does not, which also knows thoughts, functions and where each turn ends. Any other is rendered in a
process of its own (base/jinja_apart), as transformers and llama.cpp render it: with `messages`, `tools`,
`add_generation_prompt`, `enable_thinking`, `raise_exception`. Nothing else of it is run, and no text of it is believed
to be more than a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import UsageError
from rwkvflow.base.jinja_apart import Bounds, TemplateError, render_apart
from rwkvflow.engine.prompts import THINK, clean, template
from rwkvflow.engine.tokenizer import is_gguf

if TYPE_CHECKING:
    from jinja2 import Environment

    from rwkvflow.engine.session import Session

KEY = "tokenizer.chat_template"
#: What llama.cpp's converter wrote in place of a template, for its own code to know.
NAMES = ("rwkv-world",)
LONGEST = 1 << 20  # characters of a template
BOUNDS = Bounds(seconds=5, characters=8 << 20)
KINDS = ("auto", "rwkv")


def known(text: str) -> bool:
    """Whether a template is one that engine/prompts describes."""
    return text.strip() in (*NAMES, *(template(closed=closed).strip() for closed in (True, False)))


class ChatTemplate:
    """A template of a stranger's."""

    def __init__(self, text: str, name: str) -> None:
        """`name` is what messages call it. Raises UsageError for one that cannot write a plain conversation."""
        self.text, self.name = text, name
        if len(text) > LONGEST:
            raise UsageError(f"{name}: {len(text)} characters are no template", remedy="--template rwkv")
        try:
            found = self.render([{"role": "user", "content": "Hi"}])
        except TemplateError as error:
            raise UsageError(f"{name} cannot be used: it{error}", remedy="--template rwkv writes RWKV's own") from None
        if "Hi" not in found:
            raise UsageError(f"{name} leaves out what is asked", remedy="--template rwkv writes RWKV's own")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        think: bool | None = None,
        generate: bool = True,
    ) -> str:
        """A conversation as the text for the model. Raises TemplateError."""
        told: dict[str, Any] = {
            "messages": json.loads(json.dumps(list(messages))),
            "add_generation_prompt": generate,
            "tools": None,
            "bos_token": "",
            "eos_token": "",
        }
        if think is not None:
            told["enable_thinking"] = think
        return render_apart(self.text, told, f"{__name__}:environment", BOUNDS)

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """What stands between an answer and the next question: where an answer ends. Raises TemplateError."""
        one, two = "QRSTUVW", "WVUTSRQ"
        turns = [("user", "Hi"), ("assistant", one), ("user", two)]
        text = self.render([{"role": role, "content": said} for role, said in turns], generate=False)
        between = text.partition(one)[2].partition(two)[0]
        stop = between.rstrip(" ") if between.strip() else between
        return (stop,) if stop else ()


def template_of(path: Path, kind: str = "auto") -> ChatTemplate | None:
    """The template that a model's conversations are written by; None for RWKV's own, which engine/prompts describes.

    `kind`: auto (that of a GGUF), rwkv, or a file. Raises UsageError for one that cannot be used, WorkerError for a
    GGUF that is broken.
    """
    if kind == "rwkv":
        return None
    if kind == "auto":
        text, name = (_held(path), f"the chat template in {path.name}") if is_gguf(path) else (None, "")
    else:
        try:
            text, name = Path(kind).read_text(encoding="utf-8"), f"--template {kind}"
        except (OSError, ValueError) as error:
            raise UsageError(f"--template: {kind} is neither {' nor '.join(KINDS)} nor a text file: {error}") from None
    return None if text is None or not text.strip() or known(text) else ChatTemplate(text, name)


def _held(path: Path) -> str | None:
    from rwkvflow.worker.read.gguf_file import read_gguf_index

    found = read_gguf_index(path).metadata.get(KEY)
    if found is None or isinstance(found, str):
        return found
    raise UsageError(f"{path.name}: its {KEY} is no text", remedy="--template rwkv writes RWKV's own prompts")


def environment() -> Environment:
    """Jinja as chat templates are rendered with it everywhere; for the process that renders one."""
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    made.globals["raise_exception"] = raise_exception
    made.filters["tojson"] = to_json
    return made


class TemplatedChat:
    """A conversation in the form of a stranger's template, as engine.session.ChatSession is one in RWKV's own."""

    def __init__(self, session: Session, chat: ChatTemplate, think: bool | None = None) -> None:
        """The session is fresh."""
        self.session, self.chat, self.think = session, chat, think
        self.messages: list[dict[str, str]] = []
        self.read = ""  # by the model, with what it wrote itself

    def system(self, text: str) -> None:
        """Something to read before the first question."""
        self.messages.append({"role": "system", "content": clean(text)})

    def ask(self, text: str, max_tokens: int = 1024, stops: Sequence[str] = ()) -> Iterator[str]:
        """The answer, piece by piece. Raises UsageError where the template cannot write the conversation."""
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self.chat.render(self.messages, think=self.think)
            own = self.chat.stops
        except TemplateError as error:
            raise UsageError(f"{self.chat.name}{error}", remedy="--template rwkv writes RWKV's own prompts") from None
        if not prompt.startswith(self.read):  # it writes what was said in another way than it was: from the beginning
            self.session.reset()
            self.read = ""
        self.session.feed(prompt[len(self.read) :])
        self.read = prompt
        said = ""
        if prompt.endswith(THINK):
            yield THINK
        try:
            for piece in self.session.generate(max_tokens, (*own, *stops)):
                shown = piece if said.strip() else piece.lstrip()
                said += piece
                if shown:
                    yield shown
        finally:
            self.read += said
            self.messages.append({"role": "assistant", "content": said.strip()})
