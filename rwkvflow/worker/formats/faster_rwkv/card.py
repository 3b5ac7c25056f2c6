"""How faster-rwkv's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile
from rwkvflow.worker.formats.faster_rwkv.layout import FasterRwkv


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    if isinstance(item, FasterRwkv) and item.dtype == "f32":
        return Card(
            "faster-rwkv's export to ncnn (`.fr`, fp32)",
            "[faster-rwkv](https://github.com/daquexian/faster-rwkv) runs fp16 alone on CUDA; a file in fp32 is what "
            "its `export_ncnn` takes. Its README says how to build it.",
            ("git clone --recursive https://github.com/daquexian/faster-rwkv",),
            _export,
            order=85,
        )

    def commands(file: CardFile) -> tuple[str, ...]:
        return (f'faster-rwkv/build/chat faster-rwkv/tokenizer_model {shlex.quote(file.path)} "cuda fp16"',)

    return Card(
        "faster-rwkv (`.fr`)",
        "[faster-rwkv](https://github.com/daquexian/faster-rwkv) runs it on CUDA; its README says how to build it.",
        ("git clone --recursive https://github.com/daquexian/faster-rwkv",),
        commands,
        order=80,
    )


def _export(file: CardFile) -> tuple[str, ...]:
    made = shlex.quote(f"{file.path}-ncnn")
    return (f"faster-rwkv/build/export_ncnn {shlex.quote(file.path)} {made}",)
