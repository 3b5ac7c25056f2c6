"""How a Hugging Face folder is run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    code = "`trust_remote_code` runs the folder's own `tokenization_rwkv.py`, where there is one."
    converter = "[llama.cpp](https://github.com/ggml-org/llama.cpp)"
    if version.startswith("6"):
        return Card(
            "llama.cpp's converter (folder, version 6)",
            f"The converter of {converter} reads it, with PyPI's gguf, torch and transformers.",
            ("git clone https://github.com/ggml-org/llama.cpp", "pip install gguf torch transformers"),
            _convert,
            order=60,
        )
    if version.startswith("7"):
        return Card(
            "flash-linear-attention (folder, version 7)",
            "The names are those of [flash-linear-attention](https://github.com/fla-org/flash-linear-attention), which "
            f"wants a GPU. The converter of {converter} reads it too. {code}",
            ("pip install transformers torch flash-linear-attention",),
            _commands,
            order=60,
        )
    return Card(
        "transformers (folder)",
        f"transformers itself runs version 4. {code}",
        ("pip install transformers torch",),
        _commands,
        order=60,
    )


def _convert(file: CardFile) -> tuple[str, ...]:
    # In the type that it was proved in: llama.cpp multiplies in fp16 with what is F16.
    return (f"python llama.cpp/convert_hf_to_gguf.py {shlex.quote(file.path)} --outtype f32",)


def _commands(file: CardFile) -> tuple[str, ...]:
    fla = "import fla; " if file.version.startswith("7") else ""
    # Of itself it computes in the checkpoint's type. In fp32 this was proved; fla's kernels want 16 bits, and of these
    # bf16 holds what fp32 does.
    dtype = "bfloat16" if file.version.startswith("7") else "float32"
    call = f"pipeline('text-generation', {file.path!r}, dtype='{dtype}', trust_remote_code=True)('The ')"
    return (f'python -c "{fla}from transformers import pipeline; print({call})"',)
