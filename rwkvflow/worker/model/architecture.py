"""Version and dimensions of an RWKV model, from the names and shapes of its tensors alone.

What each version has stands in versions.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.variants import hybrid_of, refuse_variant
from rwkvflow.worker.model.versions import HARMLESS, HEAD_NORM_EPS, HYBRIDS, SPECS, TOKENIZERS, TensorSpec, tell_version

MAX_PROBLEMS: Final = 12
MAX_LAYERS: Final = 10_000
MAX_SIZE: Final = 2**31 - 1
_FLOATS: Final = ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class Architecture:
    """An RWKV model's version and sizes.

    n_head, head_size  None for version 4, which has no heads
    n_ffn, n_att       rows of ffn.key.weight and att.key.weight (n_att is n_embd in all that the author published)
    lora               ranks of the low-rank matrices: {"decay", "maa"} in 6, {"a", "g", "v", "w"} in 7, else {}
                       (a hybrid has those of its version)
    dtype              the dtype that holds most of the bytes
    extra              names that belong to no known tensor of this version; see `unknown`
    head_norm_eps      epsilon of the head group norm (ln_x) of versions 5 to 7, which no tensor tells
    n_head_kv          heads of keys and values, where several heads share them; None elsewhere
    rms_norm_eps       epsilon of a hybrid's RMS norms, as its config.json says; None for the versions
    """

    version: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int | None
    head_size: int | None
    n_ffn: int
    n_att: int
    lora: Mapping[str, int] = field(hash=False)
    dtype: str
    extra: tuple[str, ...] = ()
    head_norm_eps: float = HEAD_NORM_EPS
    n_head_kv: int | None = None
    rms_norm_eps: float | None = None

    @property
    def tokenizer_guess(self) -> str | None:
        """The tokenizer by the size of the vocabulary: "bytes", "20b" or "world"; None when no known one has it."""
        return TOKENIZERS.get(self.n_vocab)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, with the tokenizer guess; only what the tensors, or a hybrid's config.json, tell."""
        told = asdict(self)
        del told["head_norm_eps"]
        for name in ("n_head_kv", "rms_norm_eps"):
            if told[name] is None:
                del told[name]
        return {
            **told,
            "lora": dict(self.lora),
            "extra": list(self.extra),
            "tokenizer_guess": self.tokenizer_guess,
        }


def architecture_of(tensors: Mapping[str, TensorInfo], group_norm_eps: float | None = None) -> Architecture:
    """The architecture of a checkpoint's tensors; `group_norm_eps` where it is not the author's.

    Raises WorkerError that names every missing tensor, contradictory shape and wrong dtype (the first MAX_PROBLEMS),
    says that these are not RWKV's tensors, or names the variant that they are.
    """
    refuse_variant(tensors)
    if (hybrid := hybrid_of(tensors)) is not None:
        raise WorkerError(
            f"these are tensors of {hybrid.label}, which is read from its Hugging Face folder, for its config.json "
            "says what no tensor tells: name the folder, not a file of it"
        )
    found = _ShapeReader(tensors).result()
    if found.version in HYBRIDS:
        eps = getattr(tensors, "said", {}).get("rms_norm_eps")
        if eps is None:
            raise WorkerError(f"the epsilon of {found.version}'s norms stands in the config.json: name the folder")
        found = replace(found, rms_norm_eps=eps)
    return found if group_norm_eps is None else replace(found, head_norm_eps=group_norm_eps)


def is_state(name: str) -> bool:
    """Whether a tensor of this name is the initial state of a layer, [heads, size, size], as state tuning makes it."""
    return re.fullmatch(r"blocks\.[0-9]+\.att\.time_state", name, re.ASCII) is not None


_ADAPTER = re.compile(r"[._]lora_(?:[AB]|magnitude_vector|embedding_[AB])(?:$|\.)|\.(?:bone|disha)$")


def unknown(tensors: Mapping[str, TensorInfo], architecture: Architecture) -> tuple[str, ...]:
    """Names of tensors whose meaning nobody here knows, in the checkpoint's order.

    They are those that are no tensor of the version, or not of its shape (`extra`), but for what trainers leave behind.
    A model that has such tensors computes something else than its version.
    """
    return tuple(name for name in architecture.extra if name in tensors and HARMLESS.fullmatch(name) is None)


def version_of(tensors: Mapping[str, TensorInfo]) -> str:
    """The version by the tensors that only it has. Raises WorkerError when these are not RWKV's tensors."""
    found = tell_version((name, tuple(info.shape)) for name, info in tensors.items())
    if found is not None:
        return found
    some = ", ".join(ascii(name) for name in list(tensors)[:5])
    hint = ""
    if any(name.startswith(("rwkv.blocks.", "model.layers.")) for name in tensors):
        hint = " They look like a Hugging Face folder's: name the folder, not a file of it."
    if any(_ADAPTER.search(name) for name in tensors):
        hint = (
            " They look like an adapter's: one of RWKV-PEFT or RWKV-LM-LoRA goes along with the checkpoint that it was "
            "trained on (`lora` beside it in a recipe), one of PEFT's is merged with its merge_and_unload()."
        )
    elif tensors and all(map(is_state, tensors)):
        hint = " They are initial states, which go along with a checkpoint (`state` beside it in a recipe)."
    raise WorkerError(
        f"these are not the tensors of an RWKV checkpoint (no blocks.N.att.time_decay or r_k); "
        f"found {some or 'none'}.{hint}"
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


class _ShapeReader:
    """Walks every tensor that the version should have, and collects what does not fit."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self.seen: set[str] = set()
        self.problems: list[str] = []
        self.version = version_of(tensors)
        self.spec = SPECS[self.version]
        self.lora: dict[str, int] = {}
        self.sizes: dict[str, int] = {}  # of the letters in shapes
        self.along = {  # groups of optional tensors that the model has
            spec.along for spec in self.spec.tensors if spec.along and f"blocks.0.{spec.name}" in tensors
        }
        self.called: dict[str, str] = {}  # by the name of a tensor that has two: the one that this file has

    def result(self) -> Architecture:
        layers = self._layers()
        embedding = self.tensors.get("emb.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise WorkerError(
                "emb.weight is missing: this is not a whole RWKV checkpoint"
                if embedding is None
                else f"emb.weight is {self._show(embedding.shape)}, not [vocabulary, embedding]"
            )
        vocab, c = embedding.shape
        if not 0 < vocab <= MAX_SIZE or not 0 < c <= MAX_SIZE:
            raise WorkerError(f"emb.weight is {self._show(embedding.shape)}, which is no vocabulary")
        self.seen.add("emb.weight")
        if embedding.dtype not in _FLOATS:
            self.problems.append(f"emb.weight is {embedding.dtype}, not one of {', '.join(_FLOATS)}")
        self.sizes = {"V": vocab, "C": c}
        for spec in self.spec.after:
            self._check(spec.name, spec)
        for name, spec in self._of_layer(0):
            if spec.only_layer is not None:
                self._check(name, spec)
        told = len(self.problems)
        self.sizes |= {letter: self._rows(f"blocks.0.{name}", c) for letter, name in self.spec.rows}
        att, ffn = self.sizes["A"], self.sizes["F"]
        heads, size = self._heads(att)
        self.sizes |= {"H": heads or 1, "N": size or 1}
        shared = self._shared(heads or 1, size or 1) if len(self.problems) == told else None
        if len(self.problems) == told:  # else no size is known to compare with
            for layer in range(layers):
                self._block(layer)
        if self.problems:
            shown = self.problems[:MAX_PROBLEMS]
            more = len(self.problems) - len(shown)
            raise WorkerError(
                f"the tensors do not make an RWKV version {self.version} model:\n  "
                + "\n  ".join(shown)
                + (f"\n  and {more} more" if more else "")
                + self._hint()
            )
        extra = tuple(name for name in self.tensors if name not in self.seen)
        lora = dict(sorted(self.lora.items()))
        dtype = self._dtype()
        return Architecture(self.version, vocab, c, layers, heads, size, ffn, att, lora, dtype, extra, n_head_kv=shared)

    def _hint(self) -> str:
        if self.version in HYBRIDS or any(f"blocks.0.ln0.{x}" in self.tensors for x in ("weight", "bias")):
            return ""
        return "\nFiles that ChatRWKV converted have no ln0: use the checkpoint that they were made of."

    # -- parts

    def _layers(self) -> int:
        found: set[int] = set()
        for name in self.tensors:
            parts = name.split(".", 2)
            if parts[0] == "blocks" and len(parts) == 3 and parts[1].isascii() and parts[1].isdigit():
                if len(parts[1]) > 9 or str(int(parts[1])) != parts[1]:
                    raise WorkerError(f"{name!a} is no name of a layer's tensor")
                found.add(int(parts[1]))
        if not found or max(found) >= MAX_LAYERS:
            raise WorkerError(f"the names of its layers are not blocks.0 to blocks.{MAX_LAYERS - 1}")
        if max(found) >= len(found):
            missing = [str(layer) for layer in range(max(found)) if layer not in found]
            raise WorkerError(
                f"layers are missing: there are {len(found)} and the last is {max(found)}; "
                f"without blocks.{', '.join(missing[:MAX_PROBLEMS])}"
            )
        return len(found)

    def _rows(self, name: str, columns: int) -> int:
        info = self.tensors.get(name)
        if info is None:
            self.problems.append(f"{name} is missing")
            return 1
        if len(info.shape) != 2 or info.shape[1] != columns or not 0 < info.shape[0] <= MAX_SIZE:
            self.problems.append(f"{name} is {self._show(info.shape)}, not [any, {columns}]")
            return 1
        return info.shape[0]

    def _heads(self, att: int) -> tuple[int | None, int | None]:
        """Heads and head size from layer 0; they must make up n_att."""
        spec = self.spec.heads_from
        if spec is None:
            return None, None
        per_head = len(spec.shape) == 1
        name = f"blocks.0.{spec.name}"
        info = self.tensors.get(name)
        if info is None:
            self.problems.append(f"{name} is missing")
            return 1, att
        shape = info.shape
        ok = len(shape) >= 1 and shape[0] > 0 and math.prod(shape[1 if per_head else 2 :]) == 1
        heads = shape[0] if ok else 1
        size = att // heads if per_head or len(shape) < 2 else shape[1]
        if not ok or (not per_head and len(shape) < 2) or heads * size != att:
            wanted = f"heads that divide the {att} rows of key.weight" if per_head else f"[heads, size] that make {att}"
            self.problems.append(f"{name} is {self._show(shape)}, not {wanted}")
            return 1, att
        return heads, size

    def _shared(self, heads: int, size: int) -> int | None:
        """Heads of keys and values where several share them; they must divide the heads."""
        wide = self.sizes.get("K")
        if wide is None:
            return None
        count, rest = divmod(wide, size)
        if rest or heads % count:
            self.problems.append(
                f"blocks.0.att.key.weight has {wide} rows, which are no heads of {size} that {heads} heads can share"
            )
        return count

    def _of_layer(self, layer: int) -> list[tuple[str, TensorSpec]]:
        """Whole names and specs of the tensors that a layer should have."""
        listed = [
            (f"blocks.{layer}.{spec.name}", spec)
            for spec in self.spec.of_layer(layer)
            if not spec.along or spec.along in self.along
        ]
        present = {spec.low_rank for name, spec in listed if name in self.tensors}
        return [(name, spec) for name, spec in listed if layer >= spec.from_layer or spec.low_rank in present]

    def _block(self, layer: int) -> None:
        listed = self._of_layer(layer)
        tells = {spec.low_rank: (name, spec) for name, spec in listed if spec.low_rank and spec.tells_rank}  # the last
        ranks = {key: self._rank(key, *told) for key, told in tells.items() if key is not None}
        for name, spec in listed:
            if spec.only_layer is not None:
                continue  # checked before
            if spec.role == "state":
                self._state(name, spec)
                continue
            other = f"blocks.{layer}.{spec.also}" if spec.also else None
            if other in self.tensors and name in self.tensors:
                self.problems.append(f"{name} and {other} are two names of one tensor")
            taken = other if other in self.tensors and name not in self.tensors else name
            if other:
                self._one_name(name, taken or name)
            self._check(taken or name, spec, ranks.get(spec.low_rank or "", 0))

    def _state(self, name: str, spec: TensorSpec) -> None:
        info = self.tensors.get(name)
        if info is not None and info.shape == spec.sizes(self.sizes) and info.dtype in _FLOATS:
            self.seen.add(name)

    # -- checks of one tensor

    def _one_name(self, name: str, taken: str) -> None:
        """Of two names that mean other values, runtimes take the one of any layer for all."""
        first = self.called.setdefault(name.split(".", 2)[2], taken)
        if first.split(".", 2)[2] != taken.split(".", 2)[2]:
            self.problems.append(f"{taken} is called otherwise than {first}: they hold other values")

    def _rank(self, key: str, name: str, spec: TensorSpec) -> int:
        """Rank of a low-rank pair from one of its tensors; all layers must have the same."""
        axis = spec.shape.index("R")
        info = self.tensors.get(name)
        if info is None or len(info.shape) != len(spec.shape) or not 0 < info.shape[axis] <= MAX_SIZE:
            return self.lora.get(key, 0)  # the check of the shape, which follows, names it
        rank = self.lora.setdefault(key, info.shape[axis])
        if rank != info.shape[axis]:
            self.problems.append(f"{name} has rank {info.shape[axis]}, and layers before it have {rank}")
        return info.shape[axis]

    def _check(self, name: str, spec: TensorSpec, rank: int = 0) -> None:
        """Dimensions of size 1 do not count in vectors: [1,1,C], [C,1] and [C] are alike in the author's code."""
        info = self.tensors.get(name)
        self.seen.add(name)
        shape = spec.sizes({**self.sizes, "R": rank})
        if info is None:
            self.problems.append(f"{name} is missing")
        elif not (info.shape == shape if spec.role == "matrix" else _squeezed(info.shape) == _squeezed(shape)):
            self.problems.append(f"{name} is {self._show(info.shape)}, not {self._show(shape)}")
        elif info.dtype not in _FLOATS:
            self.problems.append(f"{name} is {info.dtype}, not one of {', '.join(_FLOATS)}")

    @staticmethod
    def _show(shape: tuple[int, ...]) -> str:
        return str(list(shape))

    def _dtype(self) -> str:
        held: Counter[str] = Counter()
        for name in sorted(self.seen & self.tensors.keys()):
            held[self.tensors[name].dtype] += self.tensors[name].nbytes
        return max(sorted(held), key=lambda dtype: held[dtype])
