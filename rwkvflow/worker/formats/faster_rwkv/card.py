"""How faster-rwkv's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile
from rwkvflow.worker.formats.faster_rwkv.layout import FasterRwkv


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    kind = "fp32" if isinstance(item, FasterRwkv) and item.dtype == "f32" else "fp16"

    def commands(file: CardFile) -> tuple[str, ...]:
        return (f'faster-rwkv/build/chat faster-rwkv/tokenizer_model {shlex.quote(file.path)} "cuda {kind}"',)

    return Card(
        "faster-rwkv (`.fr`)",
        "[faster-rwkv](https://github.com/daquexian/faster-rwkv) runs it on CUDA; its README says how to build it.",
        ("git clone --recursive https://github.com/daquexian/faster-rwkv",),
        commands,
        order=80,
    )
