"""Metadata of `gguf-*` files: what llama.cpp's converter says of a model, its vocabulary, and shards of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from rwkvflow.worker.formats.gguf.tokens import Vocabulary
from rwkvflow.worker.model.about import About, size_label
from rwkvflow.worker.model.versions import HYBRIDS, LAYER_NORM_EPS, RESCALE_EVERY

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture

VERSION = 3
CONTEXT = 1048576  # what llama.cpp's converter says of models that have no limit
QUANTIZATION_VERSION = 2  # of ggml's block layouts
UINT16, UINT32, INT32, FLOAT32, BOOL, TEXT, ARRAY = 2, 4, 5, 6, 7, 8, 9


def head(tensors: int, pairs: Sequence[bytes]) -> bytes:
    """The file up to its list of so many tensors."""
    return b"GGUF" + struct.pack("<IQQ", VERSION, tensors, len(pairs)) + b"".join(pairs)


def model_pairs(
    architecture: Architecture, file_type: int | None, about: About | None = None, weights: int = 0
) -> list[bytes]:
    """Metadata of the model, of so many weights; `file_type` is the llama_ftype.

    Raises ValueError for None: a type that makes no file.
    """
    if file_type is None:
        raise ValueError("no GGUF file is mostly of this type")
    version, lora = architecture.version, architecture.lora
    name = version if version in HYBRIDS else f"rwkv{version}"
    sizes: dict[str, int] = {
        "context_length": CONTEXT,
        "embedding_length": architecture.n_embd,
        "block_count": architecture.n_layer,
        "feed_forward_length": architecture.n_ffn,
        "attention.head_count": 0,  # llama.cpp wants it and does not use it
        "wkv.head_size": architecture.head_size or 0,
    }
    if version == "6":
        sizes["rescale_every_n_layers"] = RESCALE_EVERY
    if version in ("6", "rwkv6qwen2"):
        sizes["time_mix_extra_dim"] = lora["maa"]
        sizes["time_decay_extra_dim"] = lora["decay"]
    else:
        sizes["attention.decay_lora_rank"] = lora["w"]
        sizes["attention.iclr_lora_rank"] = lora["a"]
        sizes["attention.value_residual_mix_lora_rank"] = lora.get("v", lora["a"])
        sizes["attention.gate_lora_rank"] = lora.get("g", 0)
    norm, eps = "layer_norm_epsilon", LAYER_NORM_EPS
    if architecture.rms_norm_eps is not None:
        sizes["token_shift_count"] = 1  # a hybrid's feed-forward shifts no tokens
        norm, eps = "layer_norm_rms_epsilon", architecture.rms_norm_eps
    if architecture.n_head_kv is not None:
        sizes["attention.head_count_kv"] = architecture.n_head_kv
    return [
        pair("general.architecture", TEXT, gguf_text(name.encode())),
        pair("general.type", TEXT, gguf_text(b"model")),
        *about_pairs(about or About(), weights),
        *(pair(f"{name}.{key}", UINT32, struct.pack("<I", size)) for key, size in sizes.items()),
        pair(f"{name}.attention.{norm}", FLOAT32, struct.pack("<f", eps)),
        pair("general.file_type", UINT32, struct.pack("<I", file_type)),
        pair("general.quantization_version", UINT32, struct.pack("<I", QUANTIZATION_VERSION)),
    ]


def about_pairs(about: About, weights: int) -> list[bytes]:
    """Where a model comes from and what it is called, with llama.cpp's keys; what nobody said is left out."""
    texts = {
        "name": about.name,
        "basename": about.basename,
        "quantized_by": about.quantized_by,
        "size_label": size_label(weights),
        "license": about.license,
        "license.name": about.license_name,
        "license.link": about.license_link,
        "url": about.url,
    }
    found = [_text(f"general.{key}", text) for key, text in texts.items() if text]
    if about.base_models:
        found.append(pair("general.base_model.count", UINT32, struct.pack("<I", len(about.base_models))))
    for number, (name, page) in enumerate(about.base_models):
        owner, slash, _ = name.rpartition("/")
        key = f"general.base_model.{number}"
        found += [_text(f"{key}.name", name.rpartition("/")[2])]
        found += [_text(f"{key}.organization", owner)] if slash else []
        found += [_text(f"{key}.repo_url", page)]
    if about.languages:
        found.append(pair("general.languages", ARRAY, _texts([word.encode() for word in about.languages])))
    return found


def _text(key: str, text: str) -> bytes:
    return pair(key, TEXT, gguf_text(text.encode()))


@cache
def token_pairs(words: Vocabulary) -> tuple[bytes, ...]:
    """Metadata of the tokenizer."""
    count = len(words.tokens)
    listed = _texts(words.tokens)
    kinds = struct.pack(f"<IQ{count}i", INT32, count, *words.kinds)
    pairs = [
        pair("tokenizer.ggml.model", TEXT, gguf_text(words.model.encode())),
        *([] if words.pre is None else [pair("tokenizer.ggml.pre", TEXT, gguf_text(words.pre.encode()))]),
        pair("tokenizer.ggml.tokens", ARRAY, listed),
        pair("tokenizer.ggml.token_type", ARRAY, kinds),
        *([] if not words.merges else [pair("tokenizer.ggml.merges", ARRAY, _texts(words.merges))]),
        *(pair(f"tokenizer.ggml.{x}_token_id", UINT32, struct.pack("<I", token)) for x, token in words.special),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\0"),  # a text begins with its own first token
    ]
    if words.template:
        pairs.append(pair("tokenizer.chat_template", TEXT, gguf_text(words.template.encode())))
    return tuple(pairs)


def _texts(texts: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", TEXT, len(texts)) + b"".join(map(gguf_text, texts))


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key, the type of its value, and the value."""
    return gguf_text(key.encode()) + struct.pack("<I", kind) + value


def gguf_text(data: bytes) -> bytes:
    """A text as the file has it."""
    return struct.pack("<Q", len(data)) + data


def split_pairs(number: int, count: int, tensors: int) -> list[bytes]:
    """What a shard says of itself, in the types of llama.cpp's gguf-split."""
    return [
        pair("split.no", UINT16, struct.pack("<H", number)),
        pair("split.count", UINT16, struct.pack("<H", count)),
        pair("split.tensors.count", INT32, struct.pack("<i", tensors)),
    ]


def imatrix_pairs(name: str, datasets: Sequence[str], entries: int, chunks: int) -> list[bytes]:
    """How a file was quantized, with llama.cpp's keys; `name` is the importance matrix's file, without its folder."""
    return [
        pair("quantize.imatrix.file", TEXT, gguf_text(name.encode())),
        pair("quantize.imatrix.dataset", TEXT, gguf_text(", ".join(datasets).encode())),
        pair("quantize.imatrix.entries_count", INT32, struct.pack("<i", entries)),
        pair("quantize.imatrix.chunks_count", INT32, struct.pack("<i", chunks)),
    ]
