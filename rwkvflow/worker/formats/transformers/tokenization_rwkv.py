"""The RWKV World tokenizer for Hugging Face transformers: greedy longest match over a vocabulary of byte strings.

    AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

rwkvflow wrote this file; it stands beside rwkv_vocab_v20230424.txt, whose lines are `id literal length`. To
transformers a token is a string with one character a byte (Latin-1), for tokens need not be whole characters. Id 0 is
the end of a text; no text is ever read as it.
"""

import ast
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

VOCABULARY = "rwkv_vocab_v20230424.txt"
END = "<s>"


class RwkvTokenizer(PreTrainedTokenizer):
    """See the module."""

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012 - as transformers declares it
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self, vocab_file: str, bos_token: str = END, eos_token: str = END, pad_token: str = END, **options: Any
    ) -> None:
        self.vocab_file = str(vocab_file)
        self._bytes: dict[int, bytes] = {}
        # Not splitlines(): literals may hold U+2028.
        for line in Path(vocab_file).read_text(encoding="utf-8").split("\n"):
            if line.strip():
                index, rest = line.split(" ", 1)
                literal, length = rest.rsplit(" ", 1)
                value = ast.literal_eval(literal)
                token = value.encode() if isinstance(value, str) else value
                if len(token) != int(length):
                    raise ValueError(f"{vocab_file}: the length of token {index} is wrong")
                self._bytes[int(index)] = token
        self._ids = {token: index for index, token in self._bytes.items()}
        lengths: dict[int, set[int]] = {}
        for token in self._ids:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        options.pop("add_bos_token", None)
        # What looks like a special token in a text is text.
        options["split_special_tokens"] = True
        options.setdefault("clean_up_tokenization_spaces", False)
        tokens = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        super().__init__(**tokens, **options)  # type: ignore[no-untyped-call, unused-ignore]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._bytes)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return {END: 0, **{token.decode("latin-1"): index for index, token in self._bytes.items()}}

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Nothing is added."""
        return token_ids_0 + (token_ids_1 or [])

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for the end of a text."""
        return [int(index == 0) for index in token_ids_0 + (token_ids_1 or [])]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """None."""
        return 0

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        data, at = text.encode(), 0
        out: list[str] = []
        while at < len(data):
            for length in self._lengths.get(data[at], ()):
                if data[at : at + length] in self._ids:
                    break
            else:
                length = 1  # in no vocabulary of the author's: becomes the end of a text
            out.append(data[at : at + length].decode("latin-1"))
            at += length
        return out

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token.encode("latin-1"), 0)

    def _convert_id_to_token(self, index: int) -> str:
        return "" if index == 0 else self._bytes.get(index, b"\xff").decode("latin-1")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """What is not UTF-8 becomes U+FFFD; the end of a text is empty."""
        return b"".join(b"" if token == END else token.encode("latin-1") for token in tokens).decode(errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copies the vocabulary's file; returns its path."""
        path = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCABULARY)
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)
