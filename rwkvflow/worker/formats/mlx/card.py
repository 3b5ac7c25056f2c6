"""How a folder for MLX is run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "MLX (folder)",
        "[mlx-lm](https://github.com/ml-explore/mlx-lm) runs it on Apple's processors; on Linux `mlx-lm[cpu]` does. "
        "`--trust-remote-code` runs the folder's own `tokenization_rwkv.py`, where there is one.",
        ("pip install mlx-lm",),
        _commands,
        order=65,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    model = shlex.quote(file.path)
    return (
        f"python -m mlx_lm generate --model {model} --trust-remote-code --ignore-chat-template --prompt 'The ' -m 32",
    )
