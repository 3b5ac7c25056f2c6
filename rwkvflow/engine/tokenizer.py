"""librwkv's tokenizers: World, byte-level BPE (20B) and bytes, with nothing else installed.

tokenizer = Tokenizer("rwkv_vocab_v20230424.txt")
tokens = tokenizer.encode("Once there was")
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rwkvflow.engine.binding import Library
from rwkvflow.engine.errors import EngineError


def is_gguf(path: Path) -> bool:
    """Whether a file begins as llama.cpp's do. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


class Tokenizer:
    """Text to ids and back; see rwkvflow.h. One serves any number of threads. Calls release the GIL."""

    note: str | None = None  # as the worker's tokenizers have it: nothing was guessed

    def __init__(self, file: Path | str | None, library: Library | Path | str | None = None) -> None:
        """`file`: a World vocabulary, a tokenizer.json or a GGUF; None for one token a byte. Raises EngineError."""
        self._tokenizer: int | None = None
        self._library = library if isinstance(library, Library) else Library(library)
        if not self._library.ours:
            raise EngineError(f"{self._library.path.name} has no tokenizers")
        self._library.set_print_errors(None, False)
        if file is None:
            self._tokenizer = self._library.call("rwkvflow_tokenizer_bytes")
        else:
            self._tokenizer = self._library.call("rwkvflow_tokenizer_open", os.fsencode(Path(file)))
        if not self._tokenizer:
            raise self._library.error("no tokenizer")
        self.name = str(self._library.call("rwkvflow_tokenizer_kind", self._tokenizer).decode())
        self.size = int(self._library.call("rwkvflow_tokenizer_size", self._tokenizer))  # 1 + the largest id

    def __del__(self) -> None:
        if getattr(self, "_tokenizer", None):
            self._library.call("rwkvflow_tokenizer_free", self._tokenizer)
            self._tokenizer = None

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text, which as bytes need not be UTF-8. Raises EngineError for a byte without a token."""
        data = text.encode() if isinstance(text, str) else text
        room = len(data)
        while True:
            ids = array("i", (0,)) * room  # Python lists signed numbers faster, and a ctypes array takes twice as long
            count = self._call("rwkvflow_tokenizer_encode", data, len(data), ids.buffer_info()[0], room)
            if count <= room:
                return ids[:count].tolist()
            room = count  # normalizing made the text longer

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of token ids; special tokens have none, ids without a token are 0xff."""
        ids = (ctypes.c_uint32 * len(tokens))(*tokens)
        size = self._call("rwkvflow_tokenizer_decode", ids, len(tokens), None, 0)
        text = ctypes.create_string_buffer(size)
        self._call("rwkvflow_tokenizer_decode", ids, len(tokens), text, size)
        return text.raw[:size]

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes([token])

    @cached_property
    def ids(self) -> list[int]:
        """Every id that has a token."""
        if self._library.tells_ids:
            ids = array("I", (0,)) * self.size
            return ids[: self._call("rwkvflow_tokenizer_ids", ids.buffer_info()[0], self.size)].tolist()
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        places = (ctypes.byref(data), ctypes.byref(size))
        known = self._library.call
        return [i for i in range(self.size) if known("rwkvflow_tokenizer_piece", self._tokenizer, i, *places)]

    def _call(self, name: str, *arguments: Any) -> int:
        count = ctypes.c_size_t()
        if not self._library.call(name, self._tokenizer, *arguments, ctypes.byref(count)):
            raise self._library.error("no tokens")
        return count.value
