"""`transformers`: a Hugging Face folder; version 4 as RwkvForCausalLM, 6 as Rwkv6ForCausalLM, 7 with fla's names.

    config.json, generation_config.json
    tokenizer files; World vocabularies come with tokenization_rwkv.py, which transformers runs with trust_remote_code
    model.safetensors, or model-00001-of-0000N.safetensors and model.safetensors.index.json

Names, shapes and config keys: transformers' models/rwkv; Rwkv6ForCausalLM of the author's Hugging Face models
(BBuf/RWKV-World-HF-Tokenizer), which is code in their repositories and none here; flash-linear-attention's
RWKV7ForCausalLM (utils/convert_from_rwkv7.py there). Values and types are the checkpoint's; config.json says what the
tensors say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.engine.prompts import template
from rwkvflow.worker import advice
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import Format, Limits, Split, named_tokenizer
from rwkvflow.worker.formats.safetensors.layout import TensorEntry, safetensors_parts
from rwkvflow.worker.maps.huggingface import name_of
from rwkvflow.worker.model.tokenizers import BYTES, WORLD, WORLD_FILE, refuse_misfit, world_vocabulary
from rwkvflow.worker.model.versions import HEAD_NORM_EPS, LAYER_NORM_EPS, RESCALE_EVERY
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder, Writer
from rwkvflow.worker.write.transforms import TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

SHARD = 5_000_000_000  # bytes of a file, where `save_pretrained` cuts
CONTEXT = 1024  # of version 4's kernel for GPUs; not a limit of the model
TORCH = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}

CODE = Path(__file__).resolve().with_name("tokenization_rwkv.py")  # of World vocabularies


@dataclass(frozen=True)
class Transformers(Format):
    """The folder."""

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold the model; None if it can."""
        if refused := super().refuse(architecture):
            return refused
        size = architecture.head_size or 0
        if architecture.version == "7" and not math.isclose(eps := size * LAYER_NORM_EPS, HEAD_NORM_EPS):
            return (
                f"{self.name} cannot hold a version 7 model with heads of {size}: flash-linear-attention gives their "
                f"norm an epsilon of {eps:g}, and the model has {HEAD_NORM_EPS:g}"
            )
        if architecture.version == "6":
            wanted = {"maa": 64, "decay": 128} if architecture.n_embd == 4096 else {"maa": 32, "decay": 64}
            if dict(architecture.lora) != wanted:
                return (
                    f"{self.name} cannot hold a version 6 model with low-rank matrices of {architecture.lora['maa']} "
                    f"and {architecture.lora['decay']}: Rwkv6ForCausalLM has {wanted['maa']} and {wanted['decay']}"
                )
        return None

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """The size of the artifact in bytes, without a tokenizer.json that the recipe names."""
        return sum(layout.size for layout in layouts(architecture, tensors, shard=self._shard).values())

    @property
    def _shard(self) -> int:
        return self.split.size if self.split else SHARD

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`, with the tokenizer.json that the recipe names."""
        from rwkvflow.worker.write.folder import FolderWriter

        named = named_tokenizer(engine)
        return FolderWriter(path, layouts(architecture, tensors, tokenizer=named, shard=self._shard))


def layouts(
    architecture: Architecture,
    tensors: Mapping[str, TensorInfo],
    *,
    tokenizer: Path | None = None,
    shard: int = SHARD,
) -> dict[str, Layout]:
    """Each file of the folder. Raises WorkerError."""
    remarks: list[str] = []
    files = {
        "config.json": as_json(config_of(architecture)),
        "generation_config.json": as_json({"bos_token_id": 0, "eos_token_id": 0}),
        **tokenizer_files(architecture, tokenizer, remarks),
    }
    entries = list(entries_of(architecture, tensors, remarks))
    return small_files(files, "transformers", remarks) | safetensors_parts(entries, Split(shard), {"format": "pt"})


def small_files(files: Mapping[str, bytes], name: str, remarks: Sequence[str]) -> dict[str, Layout]:
    """The files beside the weights; the first of them carries the remarks, as the format's `name` makes them."""
    out: dict[str, Layout] = {}
    for path, data in sorted(files.items()):
        build = LayoutBuilder()
        build.literal(data)
        for remark in remarks if not out else ():
            build.remark(f"{name}: {remark}")
        out[path] = build.done()
    return out


def as_json(content: Mapping[str, Any]) -> bytes:
    """A file of the folder."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# ---- tensors -----------------------------------------------------------------------------------------------------


def entries_of(
    architecture: Architecture, tensors: Mapping[str, TensorInfo], remarks: list[str]
) -> Iterator[TensorEntry]:
    """The tensors under their names there, in the checkpoint's types; adds to `remarks` what has no place."""
    left = []
    for source, info in tensors.items():
        name = name_of(architecture.version, source)
        if name is None:
            left.append(source)
            continue
        if not source.startswith("blocks."):
            yield TensorEntry(name, info.dtype, tuple(info.shape), source, Encoding(None))
            continue
        shape, transform = tuple(info.shape), None
        if name.endswith((".lora.0.weight", ".lora.2.weight")):
            if len(shape) != 2:
                raise WorkerError(f"{source} should be a matrix, and is of shape {list(shape)}")
            shape, transform = shape[::-1], TRANSPOSE
        elif "time_mix_" in name or ".attn.x_" in name:
            shape = (1, 1, math.prod(shape))
        elif architecture.version != "6" and not (source.endswith((".r_k", ".weight")) and len(shape) > 1):
            shape = (math.prod(shape),)
        yield TensorEntry(name, info.dtype, shape, source, Encoding(None, transform=transform))
    unknown = [name for name in left if name in architecture.extra]
    if unknown:
        remarks.append(f"no place for {', '.join(unknown[:4])}; left out")


# ---- beside the weights ------------------------------------------------------------------------------------------


def config_of(architecture: Architecture) -> dict[str, Any]:
    """What config.json says."""
    common: dict[str, Any] = {
        "vocab_size": architecture.n_vocab,
        "hidden_size": architecture.n_embd,
        "intermediate_size": architecture.n_ffn,
        "num_hidden_layers": architecture.n_layer,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": TORCH.get(architecture.dtype, "float32"),
    }
    if architecture.version == "4":
        return {
            **common,
            "architectures": ["RwkvForCausalLM"],
            "model_type": "rwkv",
            "attention_hidden_size": architecture.n_att,
            "context_length": CONTEXT,
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "rescale_every": RESCALE_EVERY,
        }
    if architecture.version == "6":
        return {
            **common,
            "architectures": ["Rwkv6ForCausalLM"],
            "model_type": "rwkv6",
            "attention_hidden_size": architecture.n_att,
            "head_size": architecture.head_size,
            "head_size_divisor": 8,
            "num_attention_heads": architecture.n_head,
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "rescale_every": RESCALE_EVERY,
        }
    lora = architecture.lora
    return {
        **common,
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn": None,
        "attn_mode": "chunk",
        "head_dim": architecture.head_size,
        "num_heads": architecture.n_head,
        "hidden_act": "sqrelu",
        "hidden_ratio": architecture.n_ffn / architecture.n_embd,
        "decay_low_rank_dim": lora["w"],
        "gate_low_rank_dim": lora["g"],
        "a_low_rank_dim": lora["a"],
        "v_low_rank_dim": lora.get("v", lora["a"]),
        "value_dim": [architecture.n_att] * architecture.n_layer,
        "norm_bias": True,
        "norm_eps": LAYER_NORM_EPS,
        "norm_first": True,
        "fuse_norm": False,
    }


def tokenizer_files(architecture: Architecture, named: Path | None, remarks: list[str]) -> dict[str, bytes]:
    """Files of the tokenizer: what the recipe names, else what the size of the vocabulary tells."""
    if named is not None:
        refuse_misfit(named, architecture.n_vocab)
        return _named(named.read_bytes())
    size = architecture.n_vocab
    if size == WORLD:
        path = world_vocabulary()
        if path is None:
            raise WorkerError(f"the World vocabulary is not installed: {advice.install('pyrwkv-tokenizer', 'rwkv')}")
        # One package has it with the line ends of Windows; the folder is the same from each.
        return _world(path.read_bytes().replace(b"\r\n", b"\n"), template())
    if size == BYTES or (size > BYTES and architecture.version != "4"):
        if size != BYTES:
            remarks.append(
                f"no known tokenizer has {size} tokens, so the folder gets one token a byte, and the text that it "
                f"reads and writes means nothing; {advice.name_tokenizer()}"
            )
        # A World vocabulary of single bytes; 0 is the end of a text there.
        lines = [f"{value} {bytes([value])!r} 1\n" for value in range(1, BYTES)]
        return _world("".join(lines).encode())
    remarks.append(
        f"no known tokenizer has {size} tokens: the folder has no tokenizer files; " + advice.name_tokenizer()
    )
    return {}


def _world(vocabulary: bytes, chat: str | None = None) -> dict[str, bytes]:
    """A World vocabulary and the code that reads it, which transformers does not have; `chat` is a Jinja template."""
    config: dict[str, Any] = {
        "tokenizer_class": "RwkvTokenizer",
        "auto_map": {"AutoTokenizer": [f"{CODE.stem}.RwkvTokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "<s>",
        "pad_token": "<s>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if chat is not None:
        config["chat_template"] = chat
    return {WORLD_FILE: vocabulary, CODE.name: CODE.read_bytes(), "tokenizer_config.json": as_json(config)}


def _named(data: bytes) -> dict[str, bytes]:
    if not data.lstrip().startswith(b"{"):
        return _world(data)
    try:
        added = json.loads(data).get("added_tokens") or ()
        ends = [str(token["content"]) for token in added if token.get("id") == 0]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WorkerError(f"the model's tokenizer is not a tokenizer.json: {error}") from None
    end = {"bos_token": ends[0], "eos_token": ends[0]} if ends else {}
    return {
        "tokenizer.json": data,
        "tokenizer_config.json": as_json({"tokenizer_class": "PreTrainedTokenizerFast", **end}),
    }


FORMATS = (
    Transformers(
        name="transformers",
        suffix="-HF",
        versions=frozenset({"4", "6", "7"}),
        consumer="transformers",
        family="transformers",
        is_read_here=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=Limits(logits=1e-3, perplexity=1e-3),
        requires=("transformers", "gguf", "pyrwkv-tokenizer"),
        needs_torch=True,
        engine="llama.cpp",
        fixed_epsilon=True,
        tokenizer=True,
        splits=True,
        computed_by={"6": "llama.cpp", "7": "llama.cpp"},
    ),
)
