"""Version and dimensions of an RWKV model, from the names and shapes of its tensors alone.

Names and shapes are those of the author's training code (BlinkDL/RWKV-LM). The projects disagree on labels; here:
4; 5.0 (per-head decay, no gate); 5.1 (per-head decay and a gate); 5.2 (decay per head and channel, and a gate); 6; 7.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import TensorInfo

#: The number of rows of emb.weight tells the tokenizer.
TOKENIZERS: Final = {256: "bytes", 50277: "20b", 65536: "world"}
HEAD_NORM_EPS: Final = 64e-5  # of ln_x, in the author's code for versions 5 to 7
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
    dtype              the dtype that holds most of the bytes
    extra              names that belong to no known tensor of this version; a conversion would not know their meaning
    head_norm_eps      epsilon of the head group norm (ln_x) of versions 5 to 7, which no tensor tells
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

    @property
    def tokenizer_guess(self) -> str | None:
        """The tokenizer by the size of the vocabulary: "bytes", "20b" or "world"; None when no known one has it."""
        return TOKENIZERS.get(self.n_vocab)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, with the tokenizer guess; only what the tensors tell."""
        told = asdict(self)
        del told["head_norm_eps"]
        return {
            **told,
            "lora": dict(self.lora),
            "extra": list(self.extra),
            "tokenizer_guess": self.tokenizer_guess,
        }


def architecture_of(tensors: Mapping[str, TensorInfo], group_norm_eps: float | None = None) -> Architecture:
    """The architecture of a checkpoint's tensors; `group_norm_eps` where it is not the author's.

    Raises WorkerError that names every missing tensor, contradictory shape and wrong dtype (the first MAX_PROBLEMS),
    or says that these are not RWKV's tensors.
    """
    found = _Reader(tensors).result()
    return found if group_norm_eps is None else replace(found, head_norm_eps=group_norm_eps)


def is_state(name: str) -> bool:
    """Whether a tensor of this name is the initial state of a layer, [heads, size, size], as state tuning makes it."""
    return re.fullmatch(r"blocks\.[0-9]+\.att\.time_state", name, re.ASCII) is not None


def version_of(tensors: Mapping[str, TensorInfo]) -> str:
    """The version by the table of tensors that only it has. Raises WorkerError when these are not RWKV's tensors."""

    def first(ending: str) -> TensorInfo | None:
        return next(
            (info for name, info in tensors.items() if name.startswith("blocks.") and name.endswith(ending)), None
        )

    if first(".att.r_k"):
        return "7"
    if first(".att.time_maa_x"):
        return "6"
    decay = first(".att.time_decay")
    if decay is None:
        some = ", ".join(ascii(name) for name in list(tensors)[:5])
        hint = ""
        if any(name.startswith(("rwkv.blocks.", "model.layers.")) for name in tensors):
            hint = " They look like a Hugging Face folder's: name the folder, not a file of it."
        raise WorkerError(
            f"these are not the tensors of an RWKV checkpoint (no blocks.N.att.time_decay or r_k); "
            f"found {some or 'none'}.{hint}"
        )
    if first(".att.ln_x.weight") is None:
        return "4"
    if first(".att.gate.weight") is None:
        return "5.0"
    return "5.2" if len(decay.shape) > 1 and decay.shape[1] > 1 else "5.1"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


class _Reader:
    """Walks every tensor that the version should have, and collects what does not fit."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self.seen: set[str] = set()
        self.problems: list[str] = []
        self.version = version_of(tensors)
        self.lora: dict[str, int] = {}

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
        self.matrix("head.weight", vocab, c)
        for name in ("ln_out", "blocks.0.ln0"):
            self.norm(name, c)
        told = len(self.problems)
        att = self._rows("blocks.0.att.key.weight", c)
        ffn = self._rows("blocks.0.ffn.key.weight", c)
        heads, size = self._heads(att)
        if len(self.problems) == told:  # else no size is known to compare with
            for layer in range(layers):
                self._block(layer, c, att, ffn, heads or 1, size or 1)
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
        return Architecture(self.version, vocab, c, layers, heads, size, ffn, att, lora, self._dtype(), extra)

    def _hint(self) -> str:
        if any(name in self.tensors for name in ("blocks.0.ln0.weight", "blocks.0.ln0.bias")):
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
        if self.version == "4":
            return None, None
        first = "blocks.0.att."
        per_head = self.version in ("5.0", "5.1")
        name = first + {"6": "time_faaaa", "7": "r_k"}.get(self.version, "time_decay")
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

    def _block(self, layer: int, c: int, att: int, ffn: int, heads: int, size: int) -> None:
        block = f"blocks.{layer}."
        self.norm(block + "ln1", c)
        self.norm(block + "ln2", c)
        a, f = block + "att.", block + "ffn."
        for name in ("receptance", "key", "value"):
            self.matrix(f"{a}{name}.weight", att, c)
        self.matrix(a + "output.weight", c, att)
        if self.version in ("5.1", "5.2", "6"):
            self.matrix(a + "gate.weight", att, c)
        if self.version != "4":
            self.norm(a + "ln_x", att)
        self.matrix(f + "key.weight", ffn, c)
        self.matrix(f + "value.weight", c, ffn)
        if self.version != "7":
            self.matrix(f + "receptance.weight", c, c)
        mixes = {"6": ("time_maa_k", "time_maa_r"), "7": ("x_k",)}.get(self.version, ("time_mix_k", "time_mix_r"))
        self.vectors((f + name for name in mixes), c)
        if self.version == "7":
            self._att7(a, layer, c, att, heads, size)
        elif self.version == "6":
            self._att6(a, c, att, heads, size)
        else:
            self._att45(a, c, att, heads, size)
        state = self.tensors.get(a + "time_state")
        if state is not None and self.version != "4" and state.shape == (heads, size, size) and state.dtype in _FLOATS:
            self.seen.add(a + "time_state")

    def _att45(self, a: str, c: int, att: int, heads: int, size: int) -> None:
        gate = "g" if self.version in ("5.1", "5.2") else ""
        self.vectors((f"{a}time_mix_{x}" for x in "kvr" + gate), c)
        shape = {"4": (att,), "5.2": (heads, size)}.get(self.version, (heads,))
        self.like(a + "time_decay", shape)
        both = [name for name in (a + "time_first", a + "time_faaaa") if name in self.tensors]
        if len(both) == 2:
            self.problems.append(f"{both[0]} and {both[1]} are two names of one tensor")
        usual = "time_first" if self.version in ("4", "5.0") else "time_faaaa"
        self.like(both[0] if both and self.version != "4" else a + usual, shape)

    def _att6(self, a: str, c: int, att: int, heads: int, size: int) -> None:
        self.vectors((f"{a}time_maa_{x}" for x in "xwkvrg"), c)
        self.vectors((a + "time_decay",), att)
        self.like(a + "time_faaaa", (heads, size))
        rank = self.rank("maa", a + "time_maa_w2", 3, 1)
        self.exact(a + "time_maa_w2", (5, rank, c))
        self.exact(a + "time_maa_w1", (c, 5 * rank))
        rank = self.rank("decay", a + "time_decay_w2", 2, 0)
        self.exact(a + "time_decay_w1", (c, rank))
        self.exact(a + "time_decay_w2", (rank, att))

    def _att7(self, a: str, layer: int, c: int, att: int, heads: int, size: int) -> None:
        self.vectors((f"{a}x_{x}" for x in "rwkvag"), c)
        self.vectors((a + name for name in ("k_k", "k_a")), att)
        self.like(a + "r_k", (heads, size))
        for x in "wavg":
            names = [a + x + digit for digit in ("12" if x == "g" else "012")]
            if x == "v" and layer == 0 and not any(name in self.tensors for name in names):
                continue  # layer 0 makes the value that later layers mix in
            if x != "g":
                self.vectors((a + x + "0",), att)
            rank = self.rank(x, a + x + "2", 2, 0)
            self.exact(a + x + "1", (c, rank))
            self.exact(a + x + "2", (rank, att))

    # -- checks of one tensor

    def exact(self, name: str, shape: tuple[int, ...]) -> None:
        self._check(name, shape, squeeze=False)

    def like(self, name: str, shape: tuple[int, ...]) -> None:
        """Dimensions of size 1 do not count: [1,1,C], [C,1] and [C] are alike, as everywhere in the author's code."""
        self._check(name, shape, squeeze=True)

    def vectors(self, names: Iterable[str], size: int) -> None:
        for name in names:
            self.like(name, (size,))

    def matrix(self, name: str, rows: int, columns: int) -> None:
        self.exact(name, (rows, columns))

    def norm(self, name: str, size: int) -> None:
        self.vectors((name + ".weight", name + ".bias"), size)

    def rank(self, key: str, name: str, dimensions: int, axis: int) -> int:
        """Rank of a low-rank pair from one of its tensors; all layers must have the same."""
        info = self.tensors.get(name)
        if info is None or len(info.shape) != dimensions or not 0 < info.shape[axis] <= MAX_SIZE:
            return self.lora.get(key, 0)  # the check of the shape, which follows, names it
        rank = self.lora.setdefault(key, info.shape[axis])
        if rank != info.shape[axis]:
            self.problems.append(f"{name} has rank {info.shape[axis]}, and layers before it have {rank}")
        return info.shape[axis]

    def _check(self, name: str, shape: tuple[int, ...], squeeze: bool) -> None:
        info = self.tensors.get(name)
        self.seen.add(name)
        if info is None:
            self.problems.append(f"{name} is missing")
        elif not (_squeezed(info.shape) == _squeezed(shape) if squeeze else info.shape == shape):
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
