"""What stands beside a Hugging Face model and goes into its GGUF: its tokenizer, special tokens, chat template.

llama.cpp's converter takes them from the same files in the same order (gguf-py's SpecialVocab): of a special token
what tokenizer_config.json says before config.json, of a template that of tokenizer_config.json before
chat_template.jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.worker.errors import WorkerError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
LARGEST = 16 << 20  # bytes of a file that is read here
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding"}  # of the files, and as a GGUF's keys have them


@dataclass(frozen=True)
class Beside:
    """`special` are (role in a GGUF, token id); `template` is Jinja, None where there is none."""

    special: tuple[tuple[str, int], ...]
    template: str | None


def tokenizer_beside(folder: Path) -> Path:
    """The tokenizer.json of a model's folder. Raises WorkerError where there is none."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise WorkerError(
            f"there is no {TOKENIZER} beside the model, which a GGUF of it has to hold: download the whole folder, or "
            "name the file (`tokenizer` in a recipe)"
        )
    return path


def read_beside(folder: Path, added: Mapping[str, int], size: int) -> Beside:
    """`added` are the ids of the tokenizer's added tokens, `size` the rows of the embedding. Raises WorkerError."""
    config, own = _object(folder / "config.json"), _object(folder / TOKENIZER_CONFIG)
    special = []
    for role, key in ROLES.items():
        token = own.get(f"{role}_token")
        found = added.get(str(token.get("content") if isinstance(token, dict) else token))
        if found is None and type(given := config.get(f"{role}_token_id")) is int and 0 <= given < size:
            found = given
        if found is not None:
            special.append((key, found))
    return Beside(tuple(special), _template(own, folder / TEMPLATE))


def _template(own: Mapping[str, Any], file: Path) -> str | None:
    found = own.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    if found is None and file.is_file():
        try:
            found = _bytes(file).decode("utf-8")
        except UnicodeDecodeError:
            raise WorkerError(f"{file.name} is no text in UTF-8. Download or copy it again.") from None
    return found if isinstance(found, str) and found else None


def _object(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds; nothing where it is not there. Raises WorkerError for one that is no JSON object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_bytes(path).decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a character is JSON, and no text
    except (ValueError, RecursionError) as error:
        raise WorkerError(f"{path.name} is not JSON: {str(error)[:100]}. Download or copy it again.") from None
    if not isinstance(found, dict):
        raise WorkerError(f"{path.name} is not a JSON object. Download or copy it again.")
    return found


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise WorkerError(f"{path.name} has {path.stat().st_size} bytes; no model's has more than {LARGEST}")
    return path.read_bytes()
