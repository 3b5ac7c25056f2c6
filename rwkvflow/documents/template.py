"""The recipe that `rwkvflow init SOURCE` writes: ready to run, every other choice there as a comment.

Comments that start with "# " explain; those without the space are YAML to switch on by removing the #.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.parts import NAME
from rwkvflow.documents.sources import source_problem


def guess_name(source: str) -> str:
    """A model name from the source's file name.

    RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth gives rwkv7-world-0.1b: dates, step counts, context lengths and
    release numbers say nothing that a user of the artifact would look for.
    """
    file = unquote(re.split(r"[/\\]", source.partition("?")[0].rstrip("/"))[-1])
    if source.startswith("hf://") and source.rstrip("/").count("/") == 3:
        file = file.partition("@")[0]  # the repository itself, perhaps at a revision
    first = r"-[0-9]{5}-of-[0-9]{5}"  # of several parts
    stem = re.sub(rf"({first})?\.(pth|pt|bin|safetensors)$|{first}\.gguf$", "", file, flags=re.IGNORECASE).lower()
    words = [
        word
        for word in re.split(r"[-_ ]+", stem)
        if word and not re.fullmatch(r"[0-9]{3,}|ctx[0-9]+k?|v[0-9.]+|[0-9]+%?trained|preview", word)
    ]
    if len(words) > 1 and words[0] == "rwkv" and (generation := re.fullmatch(r"x0([0-9])[0-9]|v?([0-9])", words[1])):
        words[:2] = [f"rwkv{generation[1] or generation[2]}"]
    name = re.sub(r"[^a-z0-9.-]+", "-", "-".join(words)).strip("-.")[:100]
    return name if re.fullmatch(NAME, name) else "model"


def recipe_template(source: str, name: str | None = None, *, hybrid: bool = False) -> str:
    """Text of a recipe for one model. UsageError where the source or the name cannot be one.

    hybrid: it is a Hugging Face folder of one, which only llama.cpp's files hold, and which has its own tokenizer.
    """
    if problem := source_problem(source, folder=True):
        raise UsageError(f"{source!r}: {problem}", remedy="give a path, https://… or hf://owner/name[@revision]/path")
    if name is not None and not re.fullmatch(NAME, name):
        raise UsageError(f"{name!r} is no name", remedy="use letters, digits, '.', '-' and '_', e.g. rwkv7-world-0.1b")
    chosen = name or guess_name(source)
    text = TEMPLATE
    if hybrid:
        for usual, own in _OF_HYBRIDS.items():
            text = text.replace(usual, own)
        text = text.replace("@TOKENIZER@", _quoted(f"{source.rstrip('/')}/tokenizer.json"))
    return text.replace("@NAME@", _quoted(chosen)).replace("@SOURCE@", _quoted(source))


def _quoted(text: str) -> str:
    """YAML in double quotes; safe for any text without control characters."""
    return json.dumps(text, ensure_ascii=False)


TEMPLATE = """\
# A recipe for rwkvflow: which models, into which formats, in which environment, and where to put the result.
#   rwkvflow validate FILE   is it right?
#   rwkvflow plan FILE       what would be done?
#   rwkvflow run FILE        do it
# Text and versions go in quotes: without them, 3.10 is the number 3.1.

name: @NAME@

# What to convert. Paths are relative to this file; hf://owner/name[@revision]/path and https:// are downloaded.
models:
  - name: @NAME@ # file names and identifiers are made from it
    source: @SOURCE@
    # The file's digest, where you know it. Without it, the lock pins what the first download brings.
    #sha256: "0000000000000000000000000000000000000000000000000000000000000000"
    # A LoRA to merge into it first, with the alpha that it was trained with.
    #lora: {source: lora.pth, alpha: 32}
    # auto (by the size of the vocabulary), bytes, world, or the source of a tokenizer.json (20B models).
    #tokenizer: auto
    # Epsilon of the head group norm of versions 5 to 7, where the model was made with another than 64e-5.
    #group_norm_eps: 1e-5

# What to convert into; `rwkvflow formats` lists them all.
formats:
  - ggml-f16
  - ggml-q8_0
  - ggml-q5_1
  #- ggml-q4_0
  #- safetensors

# Where to work: a container image, or on the host a virtual environment. For several, use images: and a list.
image:
  python: "3.11"
  # The base image is the registry's slim image of this Python; without a registry, one of Debian packages.
  #base: rwkvflow-base:bookworm
  #torch: "2.13.0"
  #wheels: [tokenizers==0.20.3]

# The native engine that runs the converted models: builtin is librwkv; any CMake project with the API of rwkv.h works.
engine:
  source: builtin
  #toolchain: zig
  #cmake: {CMAKE_BUILD_TYPE: Release}

# Each artifact is run and compared to the checkpoint before it is published.
smoke:
  prompts: ["The "]
  tokens: 32
  # What a format may lose: logits relative to their spread, perplexity as a ratio (0.05 is five percent).
  #limits: {ggml-q5_1: {logits: 0.5, perplexity: 0.05}}
  # Also tokens a second, on the machine that runs it: then two machines publish different figures.
  #speed: true

# Where the artifacts that passed go, with checksums, the lock and the provenance.
publish:
  - to: out
"""

#: What of the template is otherwise for a hybrid.
_OF_HYBRIDS = {
    """    #tokenizer: auto
""": """    tokenizer: @TOKENIZER@
""",
    """  - ggml-f16
  - ggml-q8_0
  - ggml-q5_1
  #- ggml-q4_0
  #- safetensors
""": """  - gguf-f16
  - gguf-q8_0
  - gguf-q4_k_m
""",
    "#limits: {ggml-q5_1:": "#limits: {gguf-q4_k_m:",
}
