"""Text to token ids and back, for the models that smoke runs.

The World and 20B vocabularies are not part of this package: the first comes with PyPI's `pyrwkv-tokenizer` in the
image, and with `rwkv`, which rwkvflow depends on; the second is a tokenizer.json that the recipe names.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rwkvflow.worker import advice
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.versions import TOKENIZERS

_SIZES = {name: size for size, name in reversed(TOKENIZERS.items())}  # without padding
PADDING = 1024  # rows that an embedding may have beyond its tokenizer's ids; a tokenizer that leaves more is another's
BYTES, TWENTY_B, WORLD = _SIZES["bytes"], _SIZES["20b"], _SIZES["world"]
WORLD_FILE = "rwkv_vocab_v20230424.txt"
WORLD_PACKAGES = ("pyrwkv_tokenizer", "rwkv")
VOCABULARY_BYTES = 64 << 20  # no vocabulary is larger


class ModelTokenizer(Protocol):
    """Ids are below the vocabulary size that the tokenizer was opened with."""

    name: str
    note: str | None  # what a person should know about the choice

    @property
    def ids(self) -> Collection[int]:
        """Every id that has a token."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; what is not UTF-8 becomes U+FFFD."""


def open_tokenizer(kind: str, n_vocab: int, file: Path | None = None) -> ModelTokenizer:
    """kind: "auto" (by n_vocab), "bytes", "world" or "tokenizer.json" (needs `file`).

    "auto" ends in pseudo-random token ids, and says so in the note, where no tokenizer fits or the one that fits is
    not there. Raises WorkerError for a named one that is not there or does not fit.
    """
    if kind == "bytes":
        return _fitting(Bytes(), BYTES, n_vocab)
    if kind == "world":
        path = file or world_vocabulary()
        if path is None:
            raise WorkerError(f"the World tokenizer is not installed: {advice.install('pyrwkv-tokenizer', 'rwkv')}")
        world = World(path)
        if file is None and (why := misfit_of_kind(kind, n_vocab)):
            raise WorkerError(why)
        return _fitting(world, world.size, n_vocab)
    if kind == "tokenizer.json":
        if file is None:
            raise WorkerError(f"the tokenizer file is missing: {advice.name_tokenizer()}")
        return _from_file(file, n_vocab)
    if kind != "auto":
        raise WorkerError(f"unknown tokenizer {kind!r}; there are auto, bytes, world, tokenizer.json")
    if file is not None:
        return _from_file(file, n_vocab)
    if n_vocab == BYTES:
        return Bytes()
    if n_vocab == WORLD:
        path = world_vocabulary()
        if path is not None:
            return World(path)
        remedy = advice.install("pyrwkv-tokenizer", "rwkv")
        return PseudoRandom(n_vocab, f"the World tokenizer is not installed; {remedy}")
    if TOKENIZERS.get(n_vocab) == "20b":
        return PseudoRandom(
            n_vocab, f"this is the 20B vocabulary, whose tokenizer.json is needed; {advice.name_tokenizer()}"
        )
    return PseudoRandom(n_vocab, f"no known tokenizer has {n_vocab} tokens")


def world_vocabulary() -> Path | None:
    """The World vocabulary file of an installed package; nothing of the package is run."""
    for package in WORLD_PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / WORLD_FILE
            if path.is_file():
                return path
    return None


def _from_file(file: Path, n_vocab: int) -> ModelTokenizer:
    if is_json(file):
        twenty = Json(file)
        return _fitting(twenty, twenty.size, n_vocab)
    world = World(file)
    return _fitting(world, world.size, n_vocab)


def misfit(name: str, size: int, n_vocab: int) -> str | None:
    """Why a tokenizer with ids below `size` is not that of a model with `n_vocab` rows; None where it may be."""
    if size > n_vocab:
        return (
            f"the {name} tokenizer has token ids up to {size - 1}, the model a vocabulary of {n_vocab}: "
            "name the tokenizer that the model was trained with"
        )
    if n_vocab - size >= PADDING:
        return (
            f"the {name} tokenizer has {size} ids, the model a vocabulary of {n_vocab}: "
            "it is another model's. Name the tokenizer that the model was trained with"
        )
    return None


def is_json(path: Path) -> bool:
    """Whether a tokenizer's file is a tokenizer.json and no vocabulary of World's kind. Raises WorkerError."""
    if path.stat().st_size > VOCABULARY_BYTES:
        raise WorkerError(f"{path.name} has {path.stat().st_size} bytes; that is no tokenizer")
    with path.open("rb") as opened:
        return opened.read(64).lstrip().startswith(b"{")


def refuse_misfit(path: Path, n_vocab: int) -> None:
    """Raises WorkerError where the file is no tokenizer, or that of a model with other than `n_vocab` rows.

    A tokenizer.json is read as JSON alone, without PyPI's tokenizers.
    """
    if not is_json(path):
        size, name = World(path).size, World.name
    else:
        try:
            content = json.loads(path.read_bytes())
            listed = content["model"]["vocab"]  # Unigram has a list
            ids = list(range(len(listed))) if isinstance(listed, list) else [int(i) for i in listed.values()]
            ids += [int(token["id"]) for token in content.get("added_tokens") or ()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise WorkerError(f"the model's tokenizer is not a tokenizer.json: {error}") from None
        size, name = 1 + max(ids, default=-1), Json.name
    if why := misfit(name, size, n_vocab):
        raise WorkerError(why)


def misfit_of_kind(kind: str, n_vocab: int) -> str | None:
    """The same for what a recipe or an option names without a file: "bytes" or "world"; None for the others."""
    if kind == "world" and n_vocab != WORLD:
        return (
            f"the World tokenizer is for a vocabulary of {WORLD} rows, and this model has {n_vocab}: "
            "name the file of the tokenizer that it was trained with"
        )
    return misfit("bytes", BYTES, n_vocab) if kind == "bytes" else None


def _fitting(tokenizer: ModelTokenizer, size: int, n_vocab: int) -> ModelTokenizer:
    if why := misfit(tokenizer.name, size, n_vocab):
        raise WorkerError(why)
    return tokenizer


class Bytes:
    """One token a byte."""

    name = "bytes"
    note: str | None = None
    ids: Collection[int] = range(256)

    def encode(self, text: str | bytes) -> list[int]:
        """UTF-8, or the bytes themselves."""
        return list(text.encode() if isinstance(text, str) else text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids above 255, which larger vocabularies have, become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        return bytes([token]) if 0 <= token < 256 else b"\xff"


class World:
    """Greedy longest match over the vocabulary's byte strings.

    A vocabulary line is `id literal length`, the literal a Python str or bytes, the length in bytes.
    """

    name = "world"
    note: str | None = None

    def __init__(self, path: Path) -> None:
        if path.stat().st_size > VOCABULARY_BYTES:
            raise WorkerError(f"{path.name} has {path.stat().st_size} bytes; that is no World vocabulary")
        self._ids: dict[bytes, int] = {}
        self._tokens: dict[int, bytes] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise WorkerError(f"{path.name} is no text in UTF-8, and no World vocabulary: {error}") from None
        # str.splitlines would also split at separators such as U+2028 inside literals
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                index, token = _world_line(path, number, line)
                self._ids[token] = index
                self._tokens[index] = token
        if not self._ids:
            raise WorkerError(f"{path.name} holds no tokens")
        self.size = 1 + max(self._tokens)
        self._lengths: dict[int, list[int]] = {}
        for token in self._ids:
            self._lengths.setdefault(token[0], []).append(len(token))
        for first, lengths in self._lengths.items():
            self._lengths[first] = sorted(set(lengths), reverse=True)

    @property
    def tokens(self) -> Mapping[int, bytes]:
        """Every token's bytes by its id."""
        return self._tokens

    @property
    def ids(self) -> Collection[int]:
        """Every id that has a token."""
        return self._tokens.keys()

    def encode(self, text: str | bytes) -> list[int]:
        """Of UTF-8, or of the bytes themselves. Raises WorkerError for a byte that no token starts with."""
        data, at, out = text.encode() if isinstance(text, str) else text, 0, []
        while at < len(data):
            for length in self._lengths.get(data[at], ()):
                found = self._ids.get(data[at : at + length])
                if found is not None:
                    out.append(found)
                    at += length
                    break
            else:
                raise WorkerError(f"the World vocabulary has no token for byte {data[at]}")
        return out

    def decode(self, tokens: Sequence[int]) -> str:
        """Unknown ids become U+FFFD; 0 is the end of a text and empty."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        return b"" if token == 0 else self._tokens.get(token, b"\xff")


def _world_line(path: Path, number: int, line: str) -> tuple[int, bytes]:
    try:
        index, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        if len(literal) > 4096:
            raise ValueError(literal)
        value = ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
        if not isinstance(token, bytes) or not token or len(token) != int(length) or int(index) < 0:
            raise ValueError(literal)
        return int(index), token
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise WorkerError(f"{path.name}:{number}: not a line of a World vocabulary") from None


class Json:
    """A tokenizer.json, such as that of the Pile and Raven models (GPT-NeoX), through PyPI's `tokenizers`."""

    name = "tokenizer.json"
    note: str | None = None

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise WorkerError(f"a tokenizer.json needs PyPI's tokenizers: {advice.install('tokenizers')}") from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise WorkerError(f"{path.name} is not a tokenizer.json: {error}") from None
        self.ids: Collection[int] = frozenset(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.size = 1 + max(self.ids, default=-1)
        self.piece = _pieces(path, self._tokenizer.id_to_token)

    def encode(self, text: str) -> list[int]:
        """No special tokens are added."""
        return [int(t) for t in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Special tokens are left out."""
        known = [t for t in tokens if t < self.size]
        return str(self._tokenizer.decode(known))


def _pieces(path: Path, token_of: Callable[[int], str | None]) -> Callable[[int], bytes] | None:
    """The bytes of one token, of a tokenizer that is byte-level as GPT-2's; None for another, which cannot tell."""
    content = json.loads(path.read_bytes())
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    added = {token["id"]: b"" if token["special"] else token["content"].encode() for token in content["added_tokens"]}
    # Bytes that can be shown stand for themselves, the others for characters from 256 on, in their order.
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    byte_of = {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}

    def piece(token: int) -> bytes:
        if token in added:
            return added[token]
        text = token_of(token)
        return b"\xff" if text is None else bytes(byte_of.get(character, 0xFF) for character in text)

    return piece


class PseudoRandom:
    """Ids that a text seeds: they exercise a model whose tokenizer is unknown, and mean nothing."""

    name = "pseudo-random"
    note: str | None

    def __init__(self, n_vocab: int, why: str) -> None:
        self.n_vocab = n_vocab
        self.ids: Collection[int] = range(n_vocab)
        self.note = f"pseudo-random token ids, so the text and the perplexity mean nothing: {why}"

    def encode(self, text: str) -> list[int]:
        """One id for every three bytes of text, about as many as a real tokenizer would give."""
        data = text.encode()
        count = -(-len(data) // 3)
        words = hashlib.shake_256(data).digest(8 * count)
        return [int.from_bytes(words[8 * i : 8 * i + 8], "little") % self.n_vocab for i in range(count)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The numbers."""
        return " ".join(str(t) for t in tokens)
