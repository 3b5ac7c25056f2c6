"""Makes seeded random Hugging Face folders of the two hybrids, as their makers publish them: ARWKV-7 and QRWKV-6.

    python -m tests.helpers.hybrid_folders --model arwkv7 --out folder
    python -m tests.helpers.hybrid_folders --model rwkv6qwen2 --layers 9 --width 256 --shard 500000 --out folder

Names, shapes and config.json are those of RWKV-Red-Team/ARWKV-7B-Preview-0.1 (and its NoG, without a gate) and of
recursal/QRWKV6-32B-Instruct-Preview-v0.1, written down here and not taken from what reads them. The tokenizer is
Qwen2's but for its size: a few merges.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import checkpoints

MODELS = ("arwkv7", "rwkv6qwen2")
QWEN2 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ("t h", "Ġ th", "Ġth e", "i n", "a n", "an d", "Ġ and")
Shape = tuple[int, ...]


def shapes(
    model: str,
    layers: int = 2,
    width: int = 128,
    vocab: int = 288,
    ffn: int = 192,
    head_size: int = 32,
    shared: int = 2,
    gate: bool = True,
    head_norm: bool = False,
    tied: bool = False,
) -> dict[str, Shape]:
    """Every tensor and its shape. `shared`: heads of keys and values of QRWKV-6; gate, head_norm: of ARWKV-7."""
    c, row = width, (1, 1, width)
    found: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, c)}
    for layer in range(layers):
        begin = f"model.layers.{layer}."
        found |= {f"{begin}input_layernorm.weight": (c,), f"{begin}post_attention_layernorm.weight": (c,)}
        part: dict[str, Shape] = {}
        if model == "arwkv7":
            ranks = {"w": 64, "a": 64, "v": 32, "g": 128}
            letters = "wavg" if gate else "wav"
            part |= {f"x_{x}": row for x in ("rwkvag" if gate else "rwkva")}
            part |= {f"{x}{n}": (c, ranks[x]) if n == "1" else (ranks[x], c) for x in letters for n in "12"}
            part |= dict.fromkeys(("w0", "a0", "v0", "k_k", "k_a"), row) | {"r_k": (c // head_size, head_size)}
            part |= dict.fromkeys((f"{x}.weight" for x in ("receptance", "key", "value", "output")), (c, c))
            part |= {"ln_x.weight": (c,), "ln_x.bias": (c,)} if head_norm else {}
            found |= {f"{begin}self_attn.time_mixer.{name}": shape for name, shape in part.items()}
        else:
            kv = shared * head_size
            part |= {f"time_maa_{x}": row for x in "xrkvwg"}
            part |= {"time_maa_w1": (c, 5 * 32), "time_maa_w2": (5, 32, c), "time_decay": row}
            part |= {"time_decay_w1": (c, 64), "time_decay_w2": (64, c)}
            for name, rows in (("q_proj", c), ("k_proj", kv), ("v_proj", kv)):
                part |= {f"{name}.weight": (rows, c), f"{name}.bias": (rows,)}
            part |= {"o_proj.weight": (c, c), "gate.weight": (c, c)}
            found |= {f"{begin}self_attn.{name}": shape for name, shape in part.items()}
        found |= {f"{begin}mlp.{x}_proj.weight": (ffn, c) for x in ("gate", "up")}
        found |= {f"{begin}mlp.down_proj.weight": (c, ffn)}
    return found | {"model.norm.weight": (c,)} | ({} if tied else {"lm_head.weight": (vocab, c)})


def _values(name: str, shape: Shape, seed: int) -> np.ndarray:
    """float32, of the scale of a trained model; by seed, name and shape alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    last = name.split("self_attn.")[-1].removeprefix("time_mixer.")
    if "norm.weight" in name or last == "ln_x.weight":
        mean, deviation = 1.0, 0.1
    elif name == "model.embed_tokens.weight":
        mean, deviation = 0.0, 0.5
    elif last.endswith(("output.weight", "o_proj.weight", "down_proj.weight")):
        mean, deviation = 0.0, 0.4 * shape[-1] ** -0.5  # as trained layers, which change little of what they are given
    elif last.endswith(".weight"):
        mean, deviation = 0.0, shape[-1] ** -0.5
    elif last in ("time_decay", "w0"):
        mean, deviation = -3.0, 1.0
    elif last in ("k_k", "k_a"):
        mean, deviation = 0.8, 0.1
    elif last.startswith(("x_", "time_maa_")) and shape[0] == 1:
        mean, deviation = 0.5, 0.2
    elif len(shape) > 1 and shape[0] > 1 and last != "r_k":  # low-rank pairs
        mean, deviation = 0.0, 0.05
    else:
        mean, deviation = 0.0, 0.3
    return rng.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape) * np.float32(deviation) + np.float32(
        mean
    )


def config(model: str, **sizes: Any) -> dict[str, Any]:
    """config.json of such a model."""
    asked = {"layers": 2, "width": 128, "vocab": 288, "ffn": 192, "head_size": 32, "shared": 2} | sizes
    found = {
        "hidden_act": "silu",
        "hidden_size": asked["width"],
        "intermediate_size": asked["ffn"],
        "num_hidden_layers": asked["layers"],
        "vocab_size": asked["vocab"],
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": bool(asked.get("tied")),
        "bos_token_id": asked["vocab"] - 32,
        "eos_token_id": asked["vocab"] - 32,
        "torch_dtype": "bfloat16",
    }
    heads = asked["width"] // asked["head_size"]
    if model == "arwkv7":
        return found | {
            "architectures": ["RwkvHybridForCausalLM"],
            "model_type": "rwkv_hybrid",
            "head_size": asked["head_size"],
            "head_size_divisor": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "wkv_version": 7,
            "wkv_has_gate": bool(asked.get("gate", True)),
            "wkv_has_group_norm": bool(asked.get("head_norm", False)),
        }
    return found | {
        "architectures": ["RWKV6Qwen2ForCausalLM"],
        "model_type": "rwkv6qwen2",
        "attention_bias": True,
        "num_attention_heads": heads,
        "num_key_value_heads": asked["shared"],
    }


def tokenizer(vocab: int) -> dict[str, Any]:
    """A tokenizer.json of Qwen2's kind: every byte, a few merges, three special tokens; fewer ids than `vocab`."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) if byte in shown else "" for byte in range(256)]
    hidden = iter(range(256, 512))
    words = [letter or chr(next(hidden)) for letter in letters]
    words += [merge.replace(" ", "") for merge in MERGES]
    assert len(words) + len(SPECIAL) <= vocab
    added = [
        {
            "id": len(words) + index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: index for index, word in enumerate(words)},
            "merges": list(MERGES),
        },
    }


def make(
    folder: Path,
    model: str = "arwkv7",
    dtype: str = "bf16",
    seed: int = 0,
    shard: int = 10**12,
    told: dict[str, Any] | None = None,
    **sizes: Any,
) -> Path:
    """Writes a folder; sizes as for `shapes`. shard: bytes of a file; told: keys of config.json, None for absent."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[checkpoints.Entry]] = [[]]
    left = shard
    for entry in _entries(model, dtype, seed, sizes):
        if entry.nbytes > left and groups[-1]:
            groups.append([])
            left = shard
        left -= entry.nbytes
        groups[-1].append(entry)
    names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        placed = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
        total = sum(entry.nbytes for group in groups for entry in group)
        _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed})
    for name, group in zip(names, groups, strict=True):
        checkpoints.write_safetensors(folder / name, group)
    said = config(model, **sizes) | (told or {})
    _write(folder / "config.json", {key: value for key, value in said.items() if value is not None})
    _write(folder / "tokenizer.json", tokenizer(said["vocab_size"]))
    own = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    _write(folder / "tokenizer_config.json", own)
    return folder


def _entries(model: str, dtype: str, seed: int, sizes: dict[str, Any]) -> Iterator[checkpoints.Entry]:
    for name, shape in shapes(model, **sizes).items():
        yield checkpoints.array_entry(name, _values(name, shape, seed), dtype)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a seeded random Hugging Face folder of a hybrid.")
    parser.add_argument("--model", choices=MODELS, default="arwkv7")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=288)
    parser.add_argument("--ffn", type=int, default=192)
    parser.add_argument("--head-size", type=int, default=32)
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", type=int, default=10**12, help="bytes of a file")
    parser.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args())
    print(make(options.pop("out"), **options))


if __name__ == "__main__":
    main()
