"""How web-rwkv's prefabs are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "Ai00 (`.prefab`)",
        "[Ai00](https://github.com/Ai00-X/ai00_server), a server on web-rwkv, loads it as it lies there, on any GPU "
        "with Vulkan. It wants web-rwkv 0.10.10 or later for `NF4`, and the World vocabulary. It is built with Rust, "
        "and listens at port 65530.",
        ("git clone https://github.com/Ai00-X/ai00_server",),
        _commands,
        order=55,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    config = r"""'[model]\nname = "%s"\npath = "%s"\n'"""
    # In its own folder, where it looks for its vocabulary.
    write = f'printf {config} {shlex.quote(file.path)} "$OLDPWD" > prefab.toml'
    return (f"(cd ai00_server && {write} && cargo run --release -- --config prefab.toml)",)
