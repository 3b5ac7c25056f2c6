"""Hugging Face models as checkpoints: the author's names, shapes and values again.

    config.json                         beside the weights; what it says must agree with them
    model.safetensors                   or shards and model.safetensors.index.json, or pytorch_model.bin likewise

What maps/huggingface.py says of each version, backwards: transformers' RwkvForCausalLM (4), the Rwkv5ForCausalLM
and Rwkv6ForCausalLM of the author's Hugging Face models, and flash-linear-attention's RWKV7ForCausalLM. Transposed
matrices are views. Tensors that have the author's own names keep them.

The hybrids are read likewise (maps/hybrids.py); of them config.json says what no tensor tells, so it must be there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.maps import hybrids
from rwkvflow.worker.maps.hf_config import wrong_keys
from rwkvflow.worker.maps.huggingface import FUSED, FUSED_PARTS, is_theirs, own_name
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, ModelTensors, TensorInfo
from rwkvflow.worker.model.variants import Hybrid, hybrid_called, hybrid_of, refuse_called, refuse_variant
from rwkvflow.worker.model.versions import LAYER_NORM_EPS
from rwkvflow.worker.read import shards
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file.pth import Index, View

CONFIG: Final = "config.json"
MAX_CONFIG: Final = 1 << 20
#: What a folder may hold, best first: where one kind is there, the others are copies of the same model.
WEIGHTS: Final = (".safetensors.index.json", ".safetensors", ".bin.index.json", "pytorch_model.bin")


def with_own_names(file: RawFile, index: Index) -> Index:
    """The same under the author's names, layer by layer, where the tensors have Hugging Face's.

    Raises WorkerError where two are one tensor, or the config.json beside them contradicts them.
    """
    if not any(is_theirs(name) for name in index.views):
        return index
    place = file.path.parent / CONFIG
    config = _config(place) if place.exists() else {}
    refuse_called(config)
    refuse_variant(index.views)
    if (hybrid := _hybrid(index.views, config)) is not None:
        return _of_hybrid(hybrid, file, index, config)
    views: dict[str, View] = {}
    changes: dict[str, Callable[[Any], Any]] = {}
    for source, theirs, view in _unfused(index.views):
        ours, change = own_name(theirs)
        if ours in views:
            raise WorkerError(f"{file.name}: two tensors are {ours!a}, one of them {theirs!a}")
        views[ours] = _changed(view, ours, change)
        if source in index.changes:  # of a torch file, value by value
            changes[ours] = index.changes[source]
    _tie(config, views, changes)
    views = dict(sorted(views.items(), key=lambda item: _place_of(item[0])))
    _agree(config, views)
    metadata = {key: value for key, value in index.metadata.items() if key != "format"}
    return Index(views, metadata, index.ignored, index.check, changes, "Hugging Face")


def _tie(config: Mapping[str, Any], views: dict[str, View], changes: dict[str, Callable[[Any], Any]]) -> None:
    """Makes the embedding the head as well, where config.json says so."""
    if config.get("tie_word_embeddings") is True and "head.weight" not in views and "emb.weight" in views:
        emb = views["emb.weight"]
        views["head.weight"] = replace(emb, info=TensorInfo("head.weight", emb.info.dtype, emb.info.shape))
        changes |= {"head.weight": changes["emb.weight"]} if "emb.weight" in changes else {}


def _hybrid(views: Mapping[str, View], config: Mapping[str, Any]) -> Hybrid | None:
    """The hybrid that a folder holds. Raises UnknownModelError where config.json calls the model something else."""
    found, called = hybrid_of(views), hybrid_called(config)
    if found is None and called is None:
        return None
    if found is None or (config and called is not found):
        what = "tensors of no hybrid" if found is None else f"{found.label}'s tensors"
        said = json.dumps(config.get("architectures") or config.get("model_type"))[:100]
        raise UnknownModelError(f"{CONFIG} calls the model {said}, and the folder holds {what}")
    return found


def _of_hybrid(hybrid: Hybrid, file: RawFile, index: Index, config: Mapping[str, Any]) -> Index:
    """The tensors of a hybrid's folder under the names of its spec. Raises WorkerError as with_own_names does."""
    if not config:
        raise WorkerError(
            f"{file.name}: this is {hybrid.label}, and there is no {CONFIG} beside it, which says what no tensor "
            "tells: download the whole folder"
        )
    views: dict[str, View] = {}
    changes: dict[str, Callable[[Any], Any]] = {}
    for theirs, view in index.views.items():
        ours = hybrids.own_name(hybrid.name, theirs)
        if ours in views:
            raise WorkerError(f"{file.name}: two tensors are {ours!a}, one of them {theirs!a}")
        shape, stride = view.info.shape, view.stride
        width = math.prod(shape)
        if ours.endswith(".att.time_decay") and len(shape) and width == shape[-1]:  # a row for each head tells them
            shape = hybrids.heads(config, width)
            stride = (shape[1] * stride[-1], stride[-1])
        views[ours] = View(TensorInfo(ours, view.info.dtype, shape), view.base, view.span, stride)
        if theirs in index.changes:
            changes[ours] = index.changes[theirs]
    _tie(config, views, changes)
    views = dict(sorted(views.items(), key=lambda item: _place_of(item[0])))
    told = hybrids.said(config)
    _agree_hybrid(config, ModelTensors({name: view.info for name, view in views.items()}, told))
    metadata = {key: value for key, value in index.metadata.items() if key != "format"}
    return Index(views, metadata, index.ignored, index.check, changes, hybrid.label, told)


def _agree_hybrid(config: Mapping[str, Any], tensors: ModelTensors) -> None:
    """Raises WorkerError where config.json contradicts the tensors, or asks for what llama.cpp does not compute."""
    try:
        architecture = architecture_of(tensors)
    except WorkerError:
        return  # whoever wants the architecture is told
    if wrong := hybrids.wrong_keys(config, architecture, tensors):
        raise WorkerError(f"{CONFIG} contradicts the weights, or what can be computed: {'; '.join(wrong)}")


def is_hybrid(config: bytes) -> bool:
    """Whether a config.json is a hybrid's; False for a broken one, of which its reader says more."""
    try:
        found = json.loads(config.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and hybrid_called(found) is not None


def wanted(names: Collection[str]) -> str:
    """The file that tells where the weights of a folder with these files are: an index, or all of them.

    Raises WorkerError where there is none, or several.
    """
    for ending in WEIGHTS:
        found = sorted(name for name in names if name.endswith(ending) and "/" not in name)
        if len(found) > 1:
            raise WorkerError(f"several models in one folder ({found[0]}, {found[1]}); name one of the files")
        if found:
            return found[0]
    raise WorkerError("no model in the folder: neither .safetensors, nor an index of them, nor pytorch_model.bin")


def parts(index: str, content: bytes, names: Collection[str]) -> list[str]:
    """The files of the weights that an index names. Raises WorkerError for one that is not among `names`."""
    found = sorted(set(shards.weight_map(index, content).values()))
    if missing := [name for name in found if name not in names]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WorkerError(f"{missing[0]}{more}, which {index} names, is missing. Download or copy the folder again.")
    return found


# ---- config.json --------------------------------------------------------------------------------------------------


def _config(path: Any) -> dict[str, Any]:
    with RawFile(path) as file:
        if file.size > MAX_CONFIG:
            raise WorkerError(f"{path}: it has {file.size} bytes; no model's has more than {MAX_CONFIG}")
        raw = file.bytes_at(0, file.size)
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WorkerError(f"{path}: it is not JSON ({str(error)[:100]}). Download or copy it again.") from error
    if not isinstance(found, dict):
        raise WorkerError(f"{path}: it is not a JSON object. Download or copy it again.")
    return found


def _agree(config: Mapping[str, Any], views: Mapping[str, View]) -> None:
    """Raises WorkerError where config.json contradicts the tensors."""
    try:
        architecture = architecture_of({name: view.info for name, view in views.items()})
    except WorkerError:
        return  # whoever wants the architecture is told
    wrong = [
        f"{key} is {json.dumps(config[key])[:60]}, and the tensors say {json.dumps(value)}"
        for key, value in _expected(architecture, config).items()
        if config.get(key) is not None and not _equal(config[key], value)
    ]
    wrong += wrong_keys(config, architecture)
    kind = re.fullmatch(r"rwkv([5-9])?", str(config.get("model_type", "")))
    if kind and (kind[1] or "4") != architecture.version[0]:
        wrong.append(f"model_type is {kind[0]}, and the tensors are of version {architecture.version}")
    if wrong:
        raise WorkerError(f"{CONFIG} contradicts the weights: {'; '.join(wrong)}")


def _equal(said: Any, value: float) -> bool:
    return isinstance(said, int | float) and not isinstance(said, bool) and math.isclose(said, value, rel_tol=1e-6)


def _expected(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, float]:
    """What config.json must say, where it says it."""
    found: dict[str, float] = {
        "vocab_size": architecture.n_vocab,
        "hidden_size": architecture.n_embd,
        "num_hidden_layers": architecture.n_layer,
        "intermediate_size": architecture.n_ffn,
        "attention_hidden_size": architecture.n_att,
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "norm_eps": LAYER_NORM_EPS,
    }
    if architecture.head_size is None or architecture.n_head is None:
        return found
    found |= {"head_size": architecture.head_size, "head_dim": architecture.head_size}
    if architecture.version == "7":
        if config.get("head_dim") is None:  # else fla does not look at it, and configs hold any number
            found["num_heads"] = architecture.n_head
        ranks = {"w": "decay", "g": "gate", "a": "a", "v": "v"}
        found |= {f"{ranks[x]}_low_rank_dim": rank for x, rank in architecture.lora.items()}
    return found


# ---- names and shapes ---------------------------------------------------------------------------------------------


def _unfused(views: Mapping[str, View]) -> Iterator[tuple[str, str, View]]:
    """(tensor of the file, name, view) of all of them; those that are six in one are six views of it, each one row."""
    for theirs, view in views.items():
        match = FUSED.fullmatch(theirs)
        shape = view.info.shape
        if match is None or len(shape) < 2 or shape[0] != len(FUSED_PARTS) or set(shape[1:-1]) - {1}:
            yield theirs, theirs, view  # and whoever wants the architecture is told what is odd about it
            continue
        for row, part in enumerate(FUSED_PARTS):
            info = TensorInfo(f"{match[1]}{part}", view.info.dtype, shape[-1:])
            base = view.base + row * view.stride[0] * ITEM_BYTES[view.info.dtype]
            yield theirs, info.name, View(info, base, view.span, view.stride[-1:])


def _changed(view: View, ours: str, change: str) -> View:
    shape, stride = view.info.shape, view.stride
    if change == "transposed" and len(shape) == 2:
        shape, stride = shape[::-1], stride[::-1]
    elif change == "row" and len(shape) == 1:
        whole = shape[0] * stride[0]
        shape, stride = (1, 1, shape[0]), (whole, whole, stride[0])
    return View(TensorInfo(ours, view.info.dtype, shape), view.base, view.span, stride)


def _place_of(name: str) -> tuple[int, int]:
    """Embedding, layers, the rest; tensors of a layer stay in the order that they have."""
    if name.startswith("emb."):
        return 0, 0
    parts = name.split(".", 2)
    if parts[0] == "blocks" and len(parts) == 3 and parts[1].isascii() and parts[1].isdigit():
        return 1, int(parts[1][:9])
    return 2, 1 if name.startswith("head.") else 0
