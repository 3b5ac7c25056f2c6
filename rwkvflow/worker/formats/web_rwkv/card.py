"""How web-rwkv's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile
from rwkvflow.worker.formats.runtimes import runs


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    if not runs("web-rwkv-py", version):
        return Card(
            f"web-rwkv and Ai00 (`.st`, version {version})",
            "[web-rwkv](https://github.com/cryscan/web-rwkv) runs on any GPU with Vulkan, or on Mesa's drivers. Its "
            "example of a chat is built with Rust.",
            ("git clone https://github.com/cryscan/web-rwkv",),
            _example,
            order=50,
        )
    return Card(
        "web-rwkv and Ai00 (`.st`)",
        "[web-rwkv](https://github.com/cryscan/web-rwkv) runs on any GPU with Vulkan, or on Mesa's drivers.",
        ("pip install web-rwkv-py",),
        _commands,
        order=50,
    )


def _example(file: CardFile) -> tuple[str, ...]:
    # In its folder, where it looks for its vocabulary.
    return (f'(cd web-rwkv && cargo run --release --example chat -- --model "$OLDPWD"/{shlex.quote(file.path)})',)


def _commands(file: CardFile) -> tuple[str, ...]:
    return (f'python -c "from web_rwkv_py import Model; print(Model({file.path!r}).run([1, 2, 3]))"',)
