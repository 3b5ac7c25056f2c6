"""How a file for one strategy of the `rwkv` package is run."""

from __future__ import annotations

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, rwkv_package
from rwkvflow.worker.formats.chatrwkv.layout import ChatRwkv


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    strategy = item.strategy if isinstance(item, ChatRwkv) else "cpu fp32"
    return Card(
        "The `rwkv` package, ChatRWKV and text-generation-webui (`.pth`)",
        "The strategy has been applied already, so it loads in no time, and with this strategy only.",
        ("pip install rwkv torch",),
        lambda file: (rwkv_package(file, file.path.removesuffix(".pth"), strategy),),
        order=70,
    )
