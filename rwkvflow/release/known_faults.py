"""What older versions of rwkvflow published that is wrong, although all of its bytes are as they were published.

Only the headers of files are read. What is told here is told of files alone: a release does not say which version made
each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.model.variants import refuse_variant
from rwkvflow.worker.read import ggml_file, gguf_file, safetensors_file
from rwkvflow.worker.read.kinds import kind_of
from rwkvflow.worker.read.shards import open_model
from rwkvflow.worker.read.torch_file import pth

SUFFIXES: Final = (".bin", ".gguf", ".safetensors", ".st", ".pth")
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
MAX_CONFIG: Final = 16 << 20
_LAYER_0: Final = re.compile(r"blocks\.0\.att\.v[012]")
_AGAIN: Final = "Publish the release again from its recipe, with this version of rwkvflow"


def known_faults(folder: Path, names: Iterable[str]) -> list[str]:
    """One line a fault: the file, what is wrong with it, and what to do. `names` are those of the release's files."""
    found = []
    for name in sorted(names):
        if name.endswith(SUFFIXES):
            try:
                found += [f"{name}: {fault}" for fault in _of_model(folder / name)]
            except WorkerError:
                continue  # of no kind that is looked at here, or a part that is read with the first one
        elif name.rpartition("/")[2] == TOKENIZER_CONFIG:
            found += [f"{name}: {fault}" for fault in _of_tokenizer(folder / name)]
    return found


def _of_model(path: Path) -> Iterator[str]:
    with open_model(path) as file:
        kind = kind_of(file)
        names: Iterable[str] = ()
        if kind == "ggml":
            ggml = ggml_file.read_open(file)
            names = ggml.tensors
            if ggml.numbered_by != "rwkv.cpp":
                types = sorted({tensor.type.upper() for tensor in ggml.tensors.values() if tensor.type.endswith("_k")})
                yield (
                    f"its {' and '.join(types)} tensors have the numbers of {ggml.numbered_by}, which are "
                    "other types in rwkv.cpp: it reads them wrongly, and only rwkvflow reads them as they are. "
                    f"{_AGAIN}"
                )
            if odd := [name for name in names if _LAYER_0.fullmatch(name)]:
                yield f"it holds {odd[0]}, which rwkv.cpp's layer 0 has not: it aborts. {_AGAIN}"
        elif kind == "gguf":
            gguf = gguf_file.read_open(file)
            names = gguf.tensors
            if fault := _of_template(gguf.metadata.get("tokenizer.chat_template")):
                yield fault
        else:
            reader = safetensors_file.read_index if kind == "safetensors" else pth.read_index
            names = reader(file).views
    try:
        refuse_variant(names)
    except UnknownModelError as error:
        yield f"{error}. It was converted as the version that it looks like, and what it answers means nothing"


def _of_tokenizer(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > MAX_CONFIG:
            return
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if fault := _of_template(config.get("chat_template") if isinstance(config, dict) else None):
        yield fault


def _of_template(template: object) -> str | None:
    """A template in Jinja says something of the messages; 0.1 wrote the name of one that llama.cpp has built in."""
    if not isinstance(template, str) or "{" in template or not template.strip():
        return None
    return (
        f"its chat template is the text {template[:40]!a}, which all but llama.cpp take for the whole prompt of every "
        f"conversation. {_AGAIN}"
    )
