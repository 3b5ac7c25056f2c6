"""What is done with each key of a Hugging Face model's config.json; the tables that the documents show.

Of flash-linear-attention's RWKV7Config, transformers' RwkvConfig (4), and the configurations of the author's Rwkv5 and
Rwkv6 models. A key that says of a model what no tensor tells is taken over, or refused where it is not what every
runtime has built in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rwkvflow.worker.model.architecture import Architecture
from rwkvflow.worker.model.versions import HEAD_NORM_EPS, LAYER_NORM_EPS

SQUARED_RELU: Final = ("sqrelu", "relu2", "squared_relu")
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key that is looked at. wrong(value, config, architecture): what is the matter with it, None for nothing."""

    name: str
    said: str  # what is done with it, for the documents
    wrong: Callable[[Any, Config, Architecture], str | None]


def _number(said: Any, value: float) -> bool:
    return isinstance(said, int | float) and not isinstance(said, bool) and math.isclose(said, value, rel_tol=1e-6)


def _must_be(*values: Any) -> Callable[[Any, Config, Architecture], str | None]:
    def wrong(said: Any, config: Config, architecture: Architecture) -> str | None:
        if any(said == value and isinstance(said, bool) == isinstance(value, bool) for value in values):
            return None
        return f"which is not RWKV's ({' or '.join(json.dumps(value) for value in values)})"

    return wrong


def _nothing(said: Any, config: Config, architecture: Architecture) -> str | None:
    return "of which nothing here knows"


def _head_dim(said: Any, config: Config, architecture: Architecture) -> str | None:
    """fla's epsilon of the head norm is head_dim times norm_eps."""
    eps = config.get("norm_eps", LAYER_NORM_EPS)
    if architecture.version != "7" or not isinstance(said, int) or not isinstance(eps, int | float):
        return None  # other versions say it by head_size_divisor; numbers are compared with the tensors elsewhere
    return _epsilon("head_dim", said * eps)


def _divisor(said: Any, config: Config, architecture: Architecture) -> str | None:
    """The author's epsilon of the head norm is 1e-5 times its square."""
    if not isinstance(said, int | float) or isinstance(said, bool):
        return "which is no number"
    return _epsilon("head_size_divisor", LAYER_NORM_EPS * said * said)


def _epsilon(key: str, eps: float) -> str | None:
    if math.isclose(eps, HEAD_NORM_EPS, rel_tol=1e-6):
        return None
    return (
        f"so that the head norm has an epsilon of {eps:g} and not of {HEAD_NORM_EPS:g}: take {key} out of the file, "
        f"and give the model's `group_norm_eps: {eps:g}`"
    )


def _value_dim(said: Any, config: Config, architecture: Architecture) -> str | None:
    listed = said if isinstance(said, list) else [said]
    if all(_number(value, architecture.n_att) for value in listed):
        return None
    return f"and the tensors say {architecture.n_att} in each layer"


def _model_version(said: Any, config: Config, architecture: Architecture) -> str | None:
    if str(said).replace("_", ".").removesuffix(".0") == architecture.version.removesuffix(".0"):
        return None
    return f"and the tensors are of version {architecture.version}"


REFUSED: Final = (
    Key("hidden_act", "refused unless it is the squared ReLU", _must_be(*SQUARED_RELU)),
    Key("norm_first", "refused unless true", _must_be(True)),
    Key("norm_bias", "refused unless true", _must_be(True)),
    Key("attn", "refused unless null: layers of attention", _nothing),
    Key("quantization_config", "refused unless null: weights that another package quantized", _nothing),
    Key(
        "head_dim",
        "compared with the tensors; with norm_eps it gives the head norm's epsilon, refused unless 64e-5",
        _head_dim,
    ),
    Key("head_size_divisor", "1e-5 times its square is the head norm's epsilon, refused unless 64e-5", _divisor),
    Key("value_dim", "compared with the tensors", _value_dim),
    Key("model_version", "compared with the tensors", _model_version),
)
#: Keys whose numbers `hf_source` compares with the tensors.
COMPARED: Final = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "attention_hidden_size", "model_type"),
    *("layer_norm_epsilon", "norm_eps", "head_size", "num_heads"),
    *("decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim"),
)
TAKEN: Final = ("tie_word_embeddings",)
#: What changes nothing of what a model computes, by why it does not.
IRRELEVANT: Final[Mapping[str, tuple[str, ...]]] = {
    "how a runtime goes about it": (
        *("attn_mode", "fuse_norm", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_cache", "use_l2warp"),
        *(
            "use_return_dict",
            "return_dict",
            "output_attentions",
            "output_hidden_states",
            "torchscript",
            "chunk_size_feed_forward",
        ),
    ),
    "the weights in the file are not divided; runtimes in fp16 do that": ("rescale_every",),
    "the tensors say it": ("hidden_ratio", "torch_dtype", "dtype", "num_attention_heads"),
    "RWKV has no limit": ("context_length", "max_position_embeddings"),
    "id 0 ends a text in every vocabulary of RWKV": ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
    "of training": ("initializer_range", "dropout"),
    "names": (
        *("architectures", "auto_map", "transformers_version", "_name_or_path", "name_or_path", "tokenizer_class"),
        *("id2label", "label2id", "problem_type", "is_encoder_decoder", "is_decoder", "add_cross_attention"),
    ),
}


def wrong_keys(config: Config, architecture: Architecture) -> list[str]:
    """What config.json says of a model that nothing here computes so, each with its key."""
    found = []
    for key in REFUSED:
        said = config.get(key.name)
        if said is not None and (why := key.wrong(said, config, architecture)):
            found.append(f"{key.name} is {json.dumps(said)[:60]}, {why}")
    return found
