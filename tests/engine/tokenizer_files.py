"""Makes small vocabularies, for tests: World's, and a tokenizer.json shaped like that of the 20B models."""

from __future__ import annotations

import json
from typing import Any

import pytest

TEXT = "The quiet owl didn't find 12 bells, we'll say — Привет, 世界! e\u0301 \u1e9b\u0323 가각\r\n\t the then\n"


def world(words: str = TEXT) -> str:
    """Every byte and some words, as in rwkv_vocab_v20230424.txt."""
    tokens: list[str | bytes] = [chr(byte) if byte < 128 else bytes([byte]) for byte in range(256)]
    seen = set(tokens)
    for word in words.split():
        for size in (2, 3, len(word)):
            if word[:size] not in seen and len(word) >= size > 1:
                seen.add(word[:size])
                tokens.append(word[:size])
    sizes = [len(token.encode() if isinstance(token, str) else token) for token in tokens]
    return "".join(f"{i} {t!r} {n}\n" for i, (t, n) in enumerate(zip(tokens, sizes, strict=True), 1))


def bpe(merges: int, **changes: Any) -> str:
    """Trained on TEXT by PyPI's `tokenizers`; skips where it is missing.

    `changes`: add_prefix_space, or parts of the file by their names.
    """
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    spaced = bool(changes.pop("add_prefix_space", False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=258 + merges,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|padding|>"],
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    made.add_tokens([" " * count for count in range(6, 1, -1)])
    return json.dumps({**json.loads(made.to_str()), **changes}, ensure_ascii=False)
