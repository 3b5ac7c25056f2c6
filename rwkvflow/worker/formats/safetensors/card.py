"""How plain weights are run."""

from __future__ import annotations

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile, rwkv_package


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "Plain weights (`.safetensors`)",
        "The checkpoint's own names and types. The author's `rwkv` package wants a `.pth`, which is one command away.",
        ("pip install rwkv safetensors torch",),
        _commands,
        order=40,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    pth = file.path.removesuffix(".safetensors").removesuffix("-safetensors")
    files = [path for path in file.files if path.endswith(".safetensors")]
    tensors = f"load_file({file.path!r})"
    if len(files) > 1:
        tensors = f"{{k: v for f in sorted(glob({file.path + '/*.safetensors'!r})) for k, v in load_file(f).items()}}"
    glob = "from glob import glob; " if len(files) > 1 else ""
    load = f"import torch; {glob}from safetensors.torch import load_file; torch.save({tensors}, {pth + '.pth'!r})"
    return (f'python -c "{load}"', rwkv_package(file, pth, "cpu fp32"))
