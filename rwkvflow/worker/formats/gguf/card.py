"""How llama.cpp's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import ENGINE, Card, CardFile


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "llama.cpp and librwkv (`.gguf`)",
        "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this version of RWKV; `llama-cli` "
        "chats with it. `rwkvflow engine build` builds librwkv and its tool `rwkv`, which runs what is not split.",
        (ENGINE,),
        _commands,
        order=30,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    shards = sorted(path for path in file.files if path.endswith(".gguf"))  # it finds the others from the first
    path = shlex.quote(shards[0] if shards else file.path)
    commands = (f'llama-completion -m {path} -p "The " -n 64 -no-cnv',)
    if why := file.not_for.get("llama.cpp"):
        commands = (f"# not with llama.cpp: {why}",)
    return commands if len(shards) > 1 else (*commands, f'"$ENGINE/bin/rwkv" generate {path} "The " -n 64')
