"""How llama.cpp's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "llama.cpp (`.gguf`)",
        "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this version of RWKV.",
        (),
        _commands,
        order=30,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    shards = sorted(path for path in file.files if path.endswith(".gguf"))  # it finds the others from the first
    return (f'llama-cli -m {shlex.quote(shards[0] if shards else file.path)} -p "The " -n 64',)
