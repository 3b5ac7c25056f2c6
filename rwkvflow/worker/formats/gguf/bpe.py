"""A tokenizer.json as llama.cpp's tokenizer `gpt2` wants it: byte-level BPE, such as that of the Pile models (20B).

llama.cpp is told tokens, merges and a way to cut a text into words, and knows nothing of what else a tokenizer.json may
ask for. What it would do in another way is refused by name here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.worker.errors import WorkerError

ACCEPTED: Mapping[str, tuple[object, ...]] = {  # of the model: what llama.cpp does, and nothing else
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
FLAGS = ("lstrip", "rstrip", "single_word")  # of an added token
MOST_IDS = 1 << 24  # above any vocabulary's: a file of a few bytes must not ask for memory without bound
NFC = "llama.cpp does not normalize a text, and the tokenizer does (NFC): letters with a separate accent read otherwise"


@dataclass(frozen=True)
class Bpe:
    """tokens[i] is that of id i in GPT-2's spelling of bytes, None where there is none; added and special are ids.

    merges are in their order, the first applied first; `normalized`: a text is made NFC before; `remark` is what a
    person should know.
    """

    tokens: tuple[str | None, ...]
    added: frozenset[int]
    special: frozenset[int]
    merges: tuple[tuple[str, str], ...]
    normalized: bool
    remark: str | None


def read_bpe(path: Path) -> Bpe:
    """Raises WorkerError for what is no tokenizer.json, or one that llama.cpp's `gpt2` does not read so."""
    try:
        content = json.loads(path.read_bytes())
        json.dumps(content, ensure_ascii=False).encode()  # half a character is JSON, and no text
        model, listed = content["model"], content.get("added_tokens") or []
        if why := _unlike(content, model, listed):
            raise WorkerError(f"{path.name}: a GGUF cannot hold this tokenizer: {why}")
        names = {int(index): str(token) for token, index in model["vocab"].items()}
        names |= {int(token["id"]): str(token["content"]) for token in listed}
        if not names or min(names) < 0 or max(names) > MOST_IDS:
            raise WorkerError(f"{path.name}: its token ids are none of a vocabulary, of which llama.cpp knows nothing")
        merges = tuple(_pair(merge) for merge in model["merges"])
        return Bpe(
            tokens=tuple(names.get(index) for index in range(1 + max(names))),
            added=frozenset(int(token["id"]) for token in listed),
            special=frozenset(int(token["id"]) for token in listed if token["special"]),
            merges=merges,
            normalized=bool(content.get("normalizer")),
            remark=NFC if content.get("normalizer") else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise WorkerError(f"{path.name} is not a tokenizer.json of byte-level BPE: {error}") from None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _unlike(content: Mapping[str, Any], model: Mapping[str, Any], added: list[Mapping[str, Any]]) -> str | None:
    if model.get("type", "BPE") != "BPE":
        return f"its model is {model['type']}, and llama.cpp's is byte-level BPE"
    for key, values in ACCEPTED.items():
        if model.get(key) not in values:
            return f"its model has {key} {model[key]!r}, of which llama.cpp knows nothing"
    cut = content.get("pre_tokenizer") or {}
    if cut.get("type") != "ByteLevel" or cut.get("use_regex") is False:
        return f"it cuts a text into words by {cut.get('type', 'nothing')}, and llama.cpp's gpt-2 as ByteLevel does"
    if cut.get("add_prefix_space"):
        return "it puts a space before a text (add_prefix_space)"
    if (content.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return f"it normalizes a text by {content['normalizer'].get('type')}"
    for token in added:
        if flags := [flag for flag in FLAGS if token.get(flag)]:
            return f"its added token {token['content']!a} has {flags[0]}"
    return None
