"""How rwkv.cpp's `.bin` files are run."""

from __future__ import annotations

import shlex

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import ENGINE, Card, CardFile
from rwkvflow.worker.formats.ggml.layout import Ggml
from rwkvflow.worker.formats.runtimes import BY_NAME, runs


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    if isinstance(item, Ggml) and item.has_large_blocks:
        return Card(
            "librwkv (`.bin`, blocks of 256)",
            "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens. "
            "rwkv.cpp has these types since 2025.",
            (ENGINE,),
            _librwkv,
            order=10,
        )
    if not runs("rwkv.cpp", version):
        return Card(
            f"librwkv (`.bin`, version {version})",
            "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens. "
            f"Do not run it with rwkv.cpp, which {BY_NAME['rwkv.cpp'].instead[version]}.",
            (ENGINE,),
            _librwkv,
            order=15,
        )
    return Card(
        "librwkv and rwkv.cpp (`.bin`)",
        "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens; "
        "[rwkv.cpp](https://github.com/RWKV/rwkv.cpp) reads the same files and has scripts for text and chat."
        + (f" {note}" if (note := BY_NAME["rwkv.cpp"].remarks.get(version)) else ""),
        (
            ENGINE,
            "git clone --recursive https://github.com/RWKV/rwkv.cpp && (cd rwkv.cpp && cmake . && cmake --build .)",
            "pip install -r rwkv.cpp/python/requirements.txt",
        ),
        _both,
        order=20,
    )


def _librwkv(file: CardFile) -> tuple[str, ...]:
    return (f'"$ENGINE/bin/rwkv" eval {shlex.quote(file.path)} 1 2 3',)


def _both(file: CardFile) -> tuple[str, ...]:
    if why := file.not_for.get("rwkv.cpp"):
        return (*_librwkv(file), f"# not with rwkv.cpp: {why}")
    return (*_librwkv(file), f'python rwkv.cpp/python/generate_completions.py "$PWD"/{shlex.quote(file.path)}')
