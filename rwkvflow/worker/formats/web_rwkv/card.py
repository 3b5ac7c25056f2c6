"""How web-rwkv's files are run."""

from __future__ import annotations

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "web-rwkv and Ai00 (`.st`)",
        "[web-rwkv](https://github.com/cryscan/web-rwkv) runs on any GPU with Vulkan, or on Mesa's drivers.",
        ("pip install web-rwkv-py",),
        _commands,
        order=50,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    return (f'python -c "from web_rwkv_py import Model; print(Model({file.path!r}).run([1, 2, 3]))"',)
