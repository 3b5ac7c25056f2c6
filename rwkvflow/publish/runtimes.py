"""How each family of formats is run, as commands that can be pasted into a shell in the folder of the release."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rwkvflow.publish.artifacts import Row
from rwkvflow.publish.names import RECIPE


@dataclass(frozen=True)
class Runtime:
    """What the card says of one family: a heading, a sentence, and the commands for each of its files."""

    title: str
    text: str
    setup: tuple[str, ...]
    commands: tuple[tuple[str, tuple[str, ...]], ...]  # (path, its commands)


@dataclass(frozen=True)
class _Family:
    prefixes: tuple[str, ...]
    title: str
    text: str
    setup: tuple[str, ...]
    commands: Callable[[Row], tuple[str, ...]]


def _ggml(row: Row) -> tuple[str, ...]:
    path = shlex.quote(row.path)
    return (
        f'"$ENGINE/bin/rwkv" eval {path} 1 2 3',
        f'python rwkv.cpp/python/generate_completions.py "$PWD"/{path}',
    )


def _safetensors(row: Row) -> tuple[str, ...]:
    version = str((row.facts.get("architecture") or {}).get("version") or "")
    variables = "RWKV_JIT_ON=0 RWKV_V7_ON=1" if version.startswith("7") else "RWKV_JIT_ON=0"
    pth = row.path.removesuffix(".safetensors").removesuffix("-safetensors")
    files = [path for path in row.files if path.endswith(".safetensors")]
    tensors = f"load_file({row.path!r})"
    if len(files) > 1:
        tensors = f"{{k: v for f in sorted(glob({row.path + '/*.safetensors'!r})) for k, v in load_file(f).items()}}"
    glob = "from glob import glob; " if len(files) > 1 else ""
    load = f"import torch; {glob}from safetensors.torch import load_file; torch.save({tensors}, {pth + '.pth'!r})"
    use = f"from rwkv.model import RWKV; print(RWKV({pth!r}, 'cpu fp32').forward([1, 2, 3], None)[0])"
    return (f'python -c "{load}"', f'{variables} python -c "{use}"')


def _gguf(row: Row) -> tuple[str, ...]:
    shards = sorted(path for path in row.files if path.endswith(".gguf"))  # it finds the others from the first
    return (f'llama-cli -m {shlex.quote(shards[0] if shards else row.path)} -p "The " -n 64',)


def _web_rwkv(row: Row) -> tuple[str, ...]:
    return (f'python -c "from web_rwkv_py import Model; print(Model({row.path!r}).run([1, 2, 3]))"',)


def _transformers(row: Row) -> tuple[str, ...]:
    load = f"from transformers import pipeline; print(pipeline('text-generation', {row.path!r})('The '))"
    return (f'python -c "{load}"',)


FAMILIES = (
    _Family(
        ("ggml-",),
        "librwkv and rwkv.cpp (`.bin`)",
        "`rwkvflow engine build` prints the folder of librwkv and its tool `rwkv`, which takes and gives tokens; "
        "[rwkv.cpp](https://github.com/RWKV/rwkv.cpp) reads the same files and has scripts for text and chat.",
        (
            f"ENGINE=$(rwkvflow engine build {RECIPE} | sed -n 's/^engine.librwkv@.* engine: //p' | head -n 1)",
            "git clone --recursive https://github.com/RWKV/rwkv.cpp && (cd rwkv.cpp && cmake . && cmake --build .)",
        ),
        _ggml,
    ),
    _Family(
        ("gguf-",),
        "llama.cpp (`.gguf`)",
        "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this version of RWKV.",
        (),
        _gguf,
    ),
    _Family(
        ("safetensors",),
        "Plain weights (`.safetensors`)",
        "The checkpoint's own names and types. The author's `rwkv` package wants a `.pth`, which is one command away.",
        ("pip install rwkv safetensors torch",),
        _safetensors,
    ),
    _Family(
        ("web-rwkv",),
        "web-rwkv and Ai00 (`.st`)",
        "[web-rwkv](https://github.com/cryscan/web-rwkv) runs on any GPU with Vulkan, or on Mesa's drivers.",
        ("pip install web-rwkv-py",),
        _web_rwkv,
    ),
    _Family(("transformers",), "transformers (folder)", "", ("pip install transformers torch",), _transformers),
)


def runtimes(rows: Sequence[Row]) -> list[Runtime]:
    """What to say of these files, a family at a time; a family that is not known is told by what proved it."""
    found = []
    left = list(rows)
    for family in FAMILIES:
        own = [row for row in left if row.format.startswith(family.prefixes)]
        if own:
            commands = tuple((row.path, family.commands(row)) for row in own)
            found.append(Runtime(family.title, family.text, family.setup, commands))
        left = [row for row in left if row not in own]
    for consumer in sorted({str(row.smoke.get("consumer", "")) for row in left}):
        names = ", ".join(sorted({row.format for row in left if str(row.smoke.get("consumer", "")) == consumer}))
        found.append(Runtime(names, f"Run and compared with {consumer}." if consumer else "", (), ()))
    return found
