"""Runs a GGUF with llama.cpp: a library of it with our own adapter (images/llama.cpp/adapter.cc), which the engine
stage builds.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.scores import WARM_UP, Scores
from rwkvflow.worker.write.native import find_library

STEP = 64  # tokens at a time
TIMED = 128  # tokens one at a time, where the decode speed is asked for
SHOWN = 3  # lines of llama.cpp's own messages


class Llama:
    """A model in llama.cpp. Use as a context manager, from one thread."""

    def __init__(self, engine: Path, model: Path, threads: int) -> None:
        """Raises WorkerError with llama.cpp's own words when it refuses the file."""
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion starts a debugger
        _check_processor()
        try:
            self._library = ctypes.CDLL(str(find_library(engine, "libllama").resolve()))
            self._declare()
        except (OSError, AttributeError) as error:
            raise WorkerError(f"llama.cpp cannot be loaded: {error}") from None
        self._handle = self._library.rwkvflow_llama_open(os.fsencode(model), threads)
        if not self._handle:
            raise WorkerError(f"llama.cpp refuses it: {self._messages()}")
        self.vocab = int(self._library.rwkvflow_llama_vocab(self._handle))

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *error: object) -> None:
        self._library.rwkvflow_llama_close(self._handle)
        self._handle = None

    @property
    def version(self) -> str:
        """What llama.cpp calls itself."""
        return bytes(self._library.rwkvflow_llama_version()).decode(errors="replace")

    def reset(self) -> None:
        """Back to the beginning of a text."""
        self._library.rwkvflow_llama_reset(self._handle)

    def eval(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Reads on; logits [len(tokens), vocab]. Raises WorkerError."""
        ids = np.asarray(tokens, np.int32)
        if not len(ids) or ids.min() < 0 or ids.max() >= self.vocab:
            raise WorkerError(f"the tokens are not of its vocabulary of {self.vocab}")
        out = np.empty((len(ids), self.vocab), np.float32)
        status = self._library.rwkvflow_llama_eval(self._handle, ids.ctypes.data, len(ids), out.ctypes.data)
        if status:
            raise WorkerError(f"llama_decode answered {status}: {self._messages()}")
        return out

    def tokenize(self, text: str) -> list[int]:
        """llama.cpp's own token ids of a text."""
        data = text.encode()
        ids = np.empty(len(data) + 1, np.int32)
        count = self._library.rwkvflow_llama_tokenize(self._handle, data, len(data), ids.ctypes.data, len(ids))
        return [int(token) for token in ids[:count]]

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        out = ctypes.create_string_buffer(4096)
        length = self._library.rwkvflow_llama_piece(self._handle, token, out, len(out))
        return out.raw[: max(0, length)]

    def _messages(self) -> str:
        text = bytes(self._library.rwkvflow_llama_messages()).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[-SHOWN:]) or "it does not say why"

    def _declare(self) -> None:
        pointer, i32, u32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32
        for name, result, arguments in (
            ("version", ctypes.c_char_p, []),
            ("messages", ctypes.c_char_p, []),
            ("open", pointer, [ctypes.c_char_p, u32]),
            ("close", None, [pointer]),
            ("vocab", i32, [pointer]),
            ("reset", None, [pointer]),
            ("eval", i32, [pointer, pointer, u32, pointer]),
            ("tokenize", i32, [pointer, ctypes.c_char_p, i32, pointer, i32]),
            ("piece", i32, [pointer, i32, pointer, i32]),
        ):
            function = getattr(self._library, f"rwkvflow_llama_{name}")
            function.restype, function.argtypes = result, arguments


def _check_processor() -> None:
    """llama.cpp is built for AVX2 on x86-64; say so before it dies of an illegal instruction."""
    facts = Path("/proc/cpuinfo")
    if os.uname().machine == "x86_64" and facts.exists() and " avx2" not in facts.read_text(errors="replace"):
        raise WorkerError("llama.cpp is built for processors with AVX2, and this one has none")


def answers(engine: Path, artifact: Path, questions: Questions, size: int | None = None) -> Answers:
    """What llama.cpp says. `engine` is a folder with lib/libllama.*. Raises WorkerError.

    `size` is that of all shards, where the artifact is the first of several.
    """
    text = questions.text
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(threads, (size or artifact.stat().st_size) >> 24))  # small models run faster on one
    scores = Scores(questions)
    with Llama(engine, artifact, threads) as model:
        for start in range(0, len(text), STEP):
            scores.take(model.eval(text[start : start + STEP]))
            progress(start, len(text), "tokens")
        if questions.speed:
            _time(model, text[: TIMED + WARM_UP], scores)
        continuations = tuple(_continue(model, prompt, questions) for prompt in questions.prompts)
    return scores.answers(continuations, threads=threads, runtime=True)


def _time(model: Llama, text: Sequence[int], scores: Scores) -> None:
    """The text again, a token at a time."""
    model.reset()
    for token in text:
        start = time.perf_counter()
        model.eval([token])
        scores.took(time.perf_counter() - start)


def _continue(model: Llama, prompt: Sequence[int], questions: Questions) -> tuple[int, ...]:
    model.reset()
    out: list[int] = []
    read: Sequence[int] = prompt
    while len(out) < questions.tokens:
        out.append(questions.likeliest(model.eval(read)[-1]))
        read = out[-1:]
    return tuple(out)
