"""How a Hugging Face folder is run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "transformers (folder)",
        "Version 4 runs in transformers itself. 7 has the names of "
        "[flash-linear-attention](https://github.com/fla-org/flash-linear-attention), which wants a GPU and "
        "`pip install flash-linear-attention`. 6 and 7 can be read by the converter of "
        "[llama.cpp](https://github.com/ggml-org/llama.cpp). `trust_remote_code` runs the folder's own "
        "`tokenization_rwkv.py`, where there is one.",
        ("pip install transformers torch",),
        _commands,
        order=60,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    if file.version.startswith("6"):
        return (f"python llama.cpp/convert_hf_to_gguf.py {shlex.quote(file.path)}",)
    fla = "import fla; " if file.version.startswith("7") else ""
    call = f"pipeline('text-generation', {file.path!r}, trust_remote_code=True)('The ')"
    return (f'python -c "{fla}from transformers import pipeline; print({call})"',)
