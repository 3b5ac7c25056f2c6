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
#: How Qwen2's tokenizer cuts a text into words, and llama.cpp's `qwen2` as well.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NFC = "llama.cpp does not normalize a text, and the tokenizer does (NFC): letters with a separate accent read otherwise"


@dataclass(frozen=True)
class Bpe:
    """tokens[i] is that of id i in GPT-2's spelling of bytes, None where there is none; added and special are ids.

    merges are in their order, the first applied first; `pre` is llama.cpp's name of how a text is cut into words;
    `remark` is what a person should know.
    """

    tokens: tuple[str | None, ...]
    added: frozenset[int]
    special: frozenset[int]
    merges: tuple[tuple[str, str], ...]
    pre: str
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
            pre=_pre(content),
            remark=NFC if content.get("normalizer") else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise WorkerError(f"{path.name} is not a tokenizer.json of byte-level BPE: {error}") from None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _pre(content: Mapping[str, Any]) -> str:
    if _cuts_as_qwen2(content.get("pre_tokenizer") or {}):
        return "qwen2"
    return "olmo" if content.get("normalizer") else "gpt-2"  # one way to cut a text; some readers go by the name


def _cuts_as_qwen2(cut: Mapping[str, Any]) -> bool:
    """By its expression, whose matches are words of their own, and then byte-level without another."""
    steps = cut.get("pretokenizers") if cut.get("type") == "Sequence" else None
    if not isinstance(steps, list) or len(steps) != 2:
        return False
    split, bytes_of = steps
    return (
        split.get("type") == "Split"
        and split.get("pattern") == {"Regex": QWEN2}
        and (split.get("behavior"), split.get("invert", False)) == ("Isolated", False)
        and (bytes_of.get("type"), bytes_of.get("use_regex")) == ("ByteLevel", False)
        and not bytes_of.get("add_prefix_space")
    )


def _unlike(content: Mapping[str, Any], model: Mapping[str, Any], added: list[Mapping[str, Any]]) -> str | None:
    if model.get("type", "BPE") != "BPE":
        return f"its model is {model['type']}, and llama.cpp's is byte-level BPE"
    for key, values in ACCEPTED.items():
        if model.get(key) not in values:
            return f"its model has {key} {model[key]!r}, of which llama.cpp knows nothing"
    cut = content.get("pre_tokenizer") or {}
    if _cuts_as_qwen2(cut):
        cut = {"type": "ByteLevel"}
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
