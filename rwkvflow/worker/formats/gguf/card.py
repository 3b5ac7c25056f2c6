"""How llama.cpp's files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import ENGINE, Card, CardFile
from rwkvflow.worker.formats.runtimes import runs
from rwkvflow.worker.model.variants import label_of


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    if not runs("librwkv", version):
        return Card(
            f"llama.cpp (`.gguf` of {label_of(version)})",
            "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this model; `llama-cli` chats "
            "with it.",
            (),
            _llama,
            order=31,
        )
    return Card(
        "llama.cpp and librwkv (`.gguf`)",
        "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this version of RWKV; `llama-cli` "
        "chats with it. `rwkvflow engine build` builds librwkv and its tool `rwkv`, which runs what is not split.",
        (ENGINE,),
        _commands,
        order=30,
    )


def _llama(file: CardFile) -> tuple[str, ...]:
    return _commands(file)[:1]


def _commands(file: CardFile) -> tuple[str, ...]:
    shards = sorted(path for path in file.files if path.endswith(".gguf"))  # it finds the others from the first
    path = shlex.quote(shards[0] if shards else file.path)
    commands = (f'llama-completion -m {path} -p "The " -n 64 -no-cnv',)
    if why := file.not_for.get("llama.cpp"):
        commands = (f"# not with llama.cpp: {why}",)
    return commands if len(shards) > 1 else (*commands, f'"$ENGINE/bin/rwkv" generate {path} "The " -n 64')
