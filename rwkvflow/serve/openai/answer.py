"""The parts of an answer: what was thought, what is said, and which functions are called."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rwkvflow.engine.prompts import FENCE, THINK, THOUGHT

CALL = f"{FENCE}json"


@dataclass(frozen=True)
class Delta:
    """What an answer goes on with. One of the three."""

    reasoning: str = ""
    content: str = ""
    call: tuple[str, str] | None = None  # a function's name, and its arguments as JSON


class Parser:
    """Takes an answer as it comes, and tells its parts; what may be the beginning of a mark is held back.

    think: True where the prompt ended in `<think`, False where it ended in `</think` after an empty thought, None where
    it left the beginning to the model; `closed` where the prompt itself wrote the bracket that is missing there.
    tools: the names of functions that may be called. `called`: the prompt itself began a call.
    """

    def __init__(
        self,
        think: bool | None = None,
        *,
        tools: Collection[str] = (),
        called: bool = False,
        closed: bool = False,
    ) -> None:
        self._tools = tools
        self._held = ""
        self._step = "bracket" if think is not None and not closed else "begin" if think is None else "say"
        self._think = think
        if closed and think:
            self._step = "think"
        if called:
            self._step = "call"
        self._began = False  # something of this part was told
        self._given = called
        self.calls = 0

    def put(self, text: str) -> list[Delta]:
        """The parts that this text completes."""
        self._held += text
        out: list[Delta] = []
        while self._go_on(out):
            pass
        return out

    def end(self) -> list[Delta]:
        """What is left."""
        out: list[Delta] = []
        if self._step == "call":
            out += self._calls()
        elif self._held and self._step == "think":
            out.append(Delta(reasoning=self._held))
        elif self._held:
            out.append(Delta(content=self._held if self._began else self._held.lstrip()))
        self._held = ""
        return [delta for delta in out if delta != Delta()]

    def _go_on(self, out: list[Delta]) -> bool:
        """One step; whether there may be another."""
        held = self._held
        if self._step == "bracket":
            if not held:
                return False
            self._held = held.removeprefix(">")
            self._step = "think" if self._think else "say"
            return True
        if self._step == "begin":
            text = held.lstrip()
            if THINK.startswith(text) and text != THINK:
                return False
            if text.startswith(THINK):
                self._held = text[len(THINK) :]
            self._step = "think" if text.startswith(THINK) else "say"
            return True
        if self._step == "think":
            text = held if self._began else held.lstrip()
            at = text.find(THOUGHT)
            ready = text[: at if at >= 0 else len(text) - _beginning(text, THOUGHT)]
            if ready:
                out.append(Delta(reasoning=ready))
                self._began = True
            self._held = text[len(ready) :] if at < 0 else text[at + len(THOUGHT) :]
            if at >= 0:
                self._step, self._began = "say", False
            return at >= 0
        if self._step == "say":
            text = held if self._began else held.lstrip()
            if not text:
                return False
            if self._tools and not self._began:
                if CALL.startswith(text) and text != CALL:
                    return False
                if text.startswith(CALL):
                    self._held, self._step = text[len(CALL) :], "call"
                    return False
            out.append(Delta(content=text))
            self._began, self._held = True, ""
        return False

    def _calls(self) -> list[Delta]:
        """The calls in what was held; as text where they are none."""
        inside, _, behind = self._held.partition(FENCE)
        try:
            found = json.loads(inside)
            calls = [_call(each, self._tools) for each in (found if isinstance(found, list) else [found])]
        except (ValueError, RecursionError):
            return [Delta(content=("" if self._given else CALL) + self._held)]
        self.calls = len(calls)
        rest = behind.strip()
        return [*(Delta(call=call) for call in calls), *([Delta(content=rest)] if rest else [])]


def _call(found: Any, tools: Collection[str]) -> tuple[str, str]:
    if not isinstance(found, dict) or found.get("name") not in tools:
        raise ValueError("no call of a function that is known")
    arguments = found.get("arguments", {})
    return str(found["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _beginning(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of the mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


def new_id(kind: str) -> str:
    """Such as chatcmpl-…; no two are the same."""
    return f"{kind}-{uuid.uuid4().hex}"
