"""The vocabularies that llama.cpp reads from a GGUF: its tokenizer `rwkv` (World, bytes), or `gpt2` (byte-level BPE).

A token of `rwkv` is a byte string in the spelling of Python's repr: letters, \\t, \\n, \\r, \\x1f, any other character
after a backslash for itself. llama.cpp matches the longest token, as the World tokenizer does. Those of `gpt2` stand as
in the tokenizer.json (see bpe).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rwkvflow.engine.prompts import template
from rwkvflow.worker import advice
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.beside import read_beside, tokenizer_beside
from rwkvflow.worker.formats.gguf.bpe import read_bpe
from rwkvflow.worker.model.tokenizers import BYTES, WORLD, World, is_json, refuse_misfit, world_vocabulary

NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens; OWN: found in a text before it is cut
END_OF_TURN = 261  # "\n\n" in the World vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """tokens[i] and kinds[i] are of token i; `special` are (role, token); `remark` is what a person should know.

    `model` and `pre` are llama.cpp's names of a tokenizer and of how it cuts a text into words; merges are of `gpt2`.
    """

    tokens: tuple[bytes, ...]
    kinds: tuple[int, ...]
    special: tuple[tuple[str, int], ...]
    template: str | None = None
    remark: str | None = None
    model: str = "rwkv"
    pre: str | None = None
    merges: tuple[bytes, ...] = ()


def vocabulary(size: int, named: Path | None = None, folder: Path | None = None) -> Vocabulary:
    """The vocabulary of a model with `size` rows in its embedding; `named`: the file of the recipe's own tokenizer.

    `folder`: that of a Hugging Face model whose special tokens, chat template and, where none is named, tokenizer are
    taken.

    Raises WorkerError where the World vocabulary is not installed, for a tokenizer that is another model's, and for
    one that llama.cpp would not read as it is meant.
    """
    if named is None and folder is not None:
        named = tokenizer_beside(folder)
    if named is None:
        return _by_size(size)
    refuse_misfit(named, size)
    if not is_json(named):
        return _world(named, size)
    found = read_bpe(named)
    special: tuple[tuple[str, int], ...] = (("bos", 0), ("eos", 0)) if 0 in found.special else ()
    chat = None
    if folder is not None:
        added = {str(found.tokens[index]): index for index in sorted(found.added)}
        beside = read_beside(folder, added, size)
        special, chat = beside.special, beside.template
    kinds = [CONTROL if i in found.special else OWN if i in found.added else NORMAL for i in range(len(found.tokens))]
    kinds = [UNUSED if token is None else kind for token, kind in zip(found.tokens, kinds, strict=True)]
    tokens = [_pad(i) if token is None else token.encode() for i, token in enumerate(found.tokens)]
    kinds += [UNUSED] * (size - len(tokens))
    tokens += _padding(len(tokens), size)
    merges = tuple(f"{left} {right}".encode() for left, right in found.merges)
    return Vocabulary(tuple(tokens), tuple(kinds), special, chat, found.remark, "gpt2", found.pre, merges)


@cache
def _by_size(size: int) -> Vocabulary:
    if size == WORLD:
        path = world_vocabulary()
        if path is None:
            raise WorkerError(
                "the World vocabulary, which a GGUF contains, is not installed: "
                + advice.install("pyrwkv-tokenizer", "rwkv")
            )
        return _world(path, size)
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


def _world(path: Path, size: int) -> Vocabulary:
    known = World(path).tokens
    tokens = [b"<s>"]
    kinds = [CONTROL]
    for index in range(1, max(known) + 1):
        token = known.get(index)
        tokens.append(_pad(index) if token is None else _spelled(token))
        kinds.append(UNUSED if token is None else NORMAL)
    if len(tokens) > size:
        raise WorkerError(f"{path.name} has token ids up to {len(tokens) - 1}, and the model a vocabulary of {size}")
    kinds += [UNUSED] * (size - len(tokens))
    tokens += _padding(len(tokens), size)
    special: tuple[tuple[str, int], ...] = (("bos", 0), ("eos", 0))
    if known.get(END_OF_TURN) != b"\n\n":  # a vocabulary of somebody's own
        return Vocabulary(tuple(tokens), tuple(kinds), special)
    return Vocabulary(tuple(tokens), tuple(kinds), (("eot", END_OF_TURN), *special), template())


def _padding(start: int, size: int) -> list[bytes]:
    return [_pad(index) for index in range(start, size)]


def _pad(index: int) -> bytes:
    return f"[PAD{index}]".encode()


def _spelled(token: bytes) -> bytes:
    return repr(token)[2:-1].encode()
