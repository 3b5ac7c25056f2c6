"""LoRA that is merged into a checkpoint, and initial states that go along with it, as its tensors are read.

A LoRA file of RWKV-LM-LoRA (Blealtan) or RWKV-PEFT holds, for a matrix X.weight [out, in], X.lora_A [r, in] and
X.lora_B [out, r], and beside them whole tensors that were trained as well and take the place of the checkpoint's. The
merged matrix is W + (alpha / r) · B A. It is computed in float32, the r products added one after the other, and rounded
to the checkpoint's type; no library for matrices is asked, for their sums depend on the processor. PiSSA began with
matrices of its own, X.init_lora_A and X.init_lora_B in another file or the same: W - B0 A0 + B A, without an alpha.

Bone and DiSHA (also called MiSS) have one tensor, X.bone or X.disha, and no alpha. Of shape [in / r, r, r] it changes
each r x r block of W by itself: W + W D + D, with the D of the block's columns. Of shape [r, out] it is added to each
slice of r columns of W, transposed; the last slice may be narrower.

A file of initial states, as RWKV-PEFT's state tuning saves it, holds blocks.N.att.time_state [heads, size, size].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import architecture_of, is_state
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.rounding import bf16_to_float32, product, rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.checkpoint import NUMPY, Checkpoint, Rows

FLOATS: Final = ("f64", "f32", "f16", "bf16")
BLOCK: Final = 1 << 15  # values of a matrix at a time: they stay in a core's cache while the products are added
SHOWN: Final = 4
_PAIR = re.compile(r"(.+)\.lora_([AB])")
_INIT = re.compile(r"(.+)\.init_lora_([AB])")
_BONE = re.compile(r"(.+)\.(?:bone|disha)")
_OURS = ("blocks.", "emb.", "head.", "ln_out.")
_OTHERS = {
    r".*\.init_lora_[AB]": "these are the matrices that PiSSA began with; give them beside the trained ones",
    r"base_model\..*|.*\.lora_(?:[AB]\.(?:\w+\.)?weight|(?:magnitude_vector|embedding_[AB])(?:\..*)?)": (
        "these are the names of PEFT's own adapters; merge them with its merge_and_unload()"
    ),
}


def apply(checkpoint: Checkpoint, origin: Origin) -> None:
    """Merges and adds what the origin names beside the checkpoint. Raises WorkerError with the tensors' names."""
    if origin.lora is not None:
        init = None if origin.init is None else _opened(checkpoint, origin.init, "what PiSSA began with")
        _merge(checkpoint, _opened(checkpoint, origin.lora, "a LoRA"), origin.alpha, init)
    if origin.state is not None:
        _add_states(checkpoint, _opened(checkpoint, origin.state, "initial states"))


def _opened(checkpoint: Checkpoint, path: Any, what: str) -> Checkpoint:
    found = Checkpoint(path)
    checkpoint.closing(found)
    if found.kind not in ("pth", "safetensors"):
        raise WorkerError(f"{found.name}: {what} comes as a .pth or .safetensors file, not as a {found.kind}")
    return found


def _refuse(adapter: Checkpoint, problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WorkerError(f"{adapter.name}: {'; '.join(problems[:SHOWN])}{more}")


def _names(adapter: Checkpoint) -> dict[str, str]:
    """The author's names and what stands for them in the file: a prefix common to all is taken off."""
    names = list(adapter.tensors)
    if names and not any(name.startswith(_OURS) for name in names):
        prefix = re.match(r"((?:\w+\.)*?)(?:blocks|emb|head|ln_out)\.", names[0])
        if prefix and all(name.startswith(prefix[1]) for name in names):
            return {name.removeprefix(prefix[1]): name for name in names}
    return {name: name for name in names}


# ---- LoRA ---------------------------------------------------------------------------------------------------------


def _merge(checkpoint: Checkpoint, lora: Checkpoint, alpha: float | None, init: Checkpoint | None) -> None:
    pairs: dict[str, dict[str, str]] = {}
    began: dict[str, dict[str, str]] = {}
    blocks: dict[str, str] = {}
    whole: dict[str, str] = {}
    for ours, theirs in _names(lora).items():
        if match := _PAIR.fullmatch(ours):
            pairs.setdefault(match[1], {})[match[2]] = theirs
        elif match := _INIT.fullmatch(ours) if init is None else None:
            began.setdefault(match[1], {})[match[2]] = theirs
        elif match := _BONE.fullmatch(ours):
            blocks[match[1]] = theirs
        else:
            whole[ours] = theirs
    if not pairs and not blocks:
        hint = _hint(lora.tensors)  # under the names of the file
        raise WorkerError(
            f"{lora.name}: no LoRA: there are no tensors *.lora_A and *.lora_B in it, and none *.bone or *.disha.{hint}"
        )
    if init is not None:
        began = _began(init)
    _check_alpha(lora, pairs, began, alpha)
    problems = _merge_pairs(checkpoint, lora, pairs, alpha, _Began(init or lora, began))
    problems += _merge_blocks(checkpoint, lora, blocks)
    problems += _replace(checkpoint, lora, {ours: theirs for ours, theirs in whole.items() if not is_state(ours)})
    _refuse(lora, problems)
    if states := {ours: theirs for ours, theirs in whole.items() if is_state(ours)}:
        _put_states(checkpoint, lora, states)


@dataclass(frozen=True)
class _Began:
    """The matrices that PiSSA began with, by the stem of what they are for; none of any other adapter."""

    file: Checkpoint
    names: Mapping[str, Mapping[str, str]]


def _began(init: Checkpoint) -> dict[str, dict[str, str]]:
    """The matrices of a file of PiSSA's beginning; a trainer's file may call the model `model.`."""
    found: dict[str, dict[str, str]] = {}
    for ours, theirs in _names(init).items():
        if match := _INIT.fullmatch(ours):
            found.setdefault(match[1], {})[match[2]] = theirs
    if not found:
        raise WorkerError(
            f"{init.name}: PiSSA began with tensors *.init_lora_A and *.init_lora_B; there are none in it"
        )
    return found


def _check_alpha(lora: Checkpoint, pairs: Mapping[str, Any], began: Mapping[str, Any], alpha: float | None) -> None:
    """Raises WorkerError for an alpha where none was trained with, and for none or a bad one where one was."""
    plain = bool(pairs) and not began
    if plain and (alpha is None or not math.isfinite(alpha) or alpha <= 0):
        raise WorkerError(f"{lora.name}: a LoRA is merged with the `alpha` that it was trained with, a number above 0")
    if not plain and alpha is not None:
        raise WorkerError(f"{lora.name}: {'PiSSA has' if pairs else 'Bone and DiSHA have'} no alpha; give none")


def _merge_pairs(
    checkpoint: Checkpoint, lora: Checkpoint, pairs: Mapping[str, Mapping[str, str]], alpha: float | None, began: _Began
) -> list[str]:
    problems = []
    read, read_began = _AdapterReader(lora), _AdapterReader(began.file)
    if lost := sorted(set(began.names) - set(pairs)):
        problems.append(f"PiSSA began with {lost[0]}, which was not trained")
    for stem, pair in pairs.items():
        name = f"{stem}.weight"
        if problem := _mismatch(checkpoint, lora, name, stem, pair):
            problems.append(problem)
            continue
        rank = lora.tensors[pair["A"]].shape[0]
        products = [_Product(read, pair, np.float32((alpha or rank) / rank))]
        if began.names:
            first = began.names.get(stem, {})
            problem = None if len(first) == 2 else f"{stem}: what PiSSA began with is not given"
            if problem := problem or _mismatch(checkpoint, began.file, name, stem, first):
                problems.append(problem)
                continue
            products.insert(0, _Product(read_began, first, np.float32(-1)))
        checkpoint.replace(checkpoint.tensors[name], _merged(checkpoint, name, products))
    return problems


def _replace(checkpoint: Checkpoint, lora: Checkpoint, whole: Mapping[str, str]) -> list[str]:
    """Put tensors that were trained as a whole in the place of the checkpoint's; what cannot be is told."""
    problems, read = [], _AdapterReader(lora)
    for ours, theirs in whole.items():
        info, base = lora.tensors[theirs], checkpoint.tensors.get(ours)
        if base is None:
            problems.append(f"{ours} is none of the checkpoint's tensors{_hint([ours])}")
        elif _squeezed(info.shape) != _squeezed(base.shape) or info.dtype not in FLOATS:
            problems.append(f"{ours} is {info.dtype} {list(info.shape)} and {list(base.shape)} in the checkpoint")
        else:
            checkpoint.replace(base, _whole(read, theirs, base))
    return problems


def _hint(names: Iterable[str]) -> str:
    return next((f" ({why})" for name in names for known, why in _OTHERS.items() if re.fullmatch(known, name)), "")


def _mismatch(checkpoint: Checkpoint, lora: Checkpoint, name: str, stem: str, pair: Mapping[str, str]) -> str | None:
    if len(pair) == 1:
        (there,) = pair
        return f"{stem} has lora_{there} and no lora_{'B' if there == 'A' else 'A'}"
    a, b = lora.tensors[pair["A"]], lora.tensors[pair["B"]]
    base = checkpoint.tensors.get(name)
    if base is None:
        return f"{stem}.lora_A is for {name}, which the checkpoint does not have"
    if odd := next((info for info in (a, b) if info.dtype not in FLOATS or len(info.shape) != 2), None):
        return f"{odd.name} is {odd.dtype} {list(odd.shape)}, no matrix of floating-point numbers"
    if not a.shape[0] or a.shape[0] != b.shape[1]:
        return f"{stem}: lora_A {list(a.shape)} and lora_B {list(b.shape)} have no common rank of 1 or more"
    if base.shape != (b.shape[0], a.shape[1]):
        return f"{stem}: lora_B lora_A is {[b.shape[0], a.shape[1]]}, and {name} is {list(base.shape)}"
    return None


class _AdapterReader:
    """Finite values of an adapter's tensors as float32. The one that was asked for last as a whole is kept."""

    def __init__(self, adapter: Checkpoint) -> None:
        self._adapter = adapter
        self._kept: tuple[str, NDArray[np.float32]] | None = None

    def rows(self, name: str, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        values = self._adapter.float32(name, start, count)
        if not np.isfinite(values).all():
            raise WorkerError(f"{self._adapter.name}: {name} holds a NaN or an infinity")
        return values

    def whole(self, name: str) -> NDArray[np.float32]:
        if self._kept is None or self._kept[0] != name:
            self._kept = (name, self.rows(name))
        return self._kept[1]


@dataclass(frozen=True)
class _Product:
    """factor · B A, of a pair of an adapter."""

    read: _AdapterReader
    pair: Mapping[str, str]
    factor: np.float32


def _merged(checkpoint: Checkpoint, name: str, products: Sequence[_Product]) -> Rows:
    dtype = checkpoint.tensors[name].dtype

    def rows(start: int, count: int | None) -> NDArray[Any]:
        values = _wide(checkpoint.original(name, start, count), dtype)
        for each in products:
            a, b = each.read.whole(each.pair["A"]), each.read.rows(each.pair["B"], start, count)
            step = max(1, BLOCK // max(1, a.shape[1]))
            for first in range(0, len(values), step):
                values[first : first + step] += product(b[first : first + step], a) * each.factor
        return _narrow(values, dtype)

    return rows


# ---- Bone and DiSHA -----------------------------------------------------------------------------------------------


def _merge_blocks(checkpoint: Checkpoint, lora: Checkpoint, blocks: Mapping[str, str]) -> list[str]:
    problems, read = [], _AdapterReader(lora)
    for stem, theirs in blocks.items():
        name = f"{stem}.weight"
        if problem := _odd_block(checkpoint.tensors.get(name), lora.tensors[theirs], name):
            problems.append(problem)
            continue
        checkpoint.replace(checkpoint.tensors[name], _changed(checkpoint, read, name, theirs))
    return problems


def _odd_block(base: TensorInfo | None, info: TensorInfo, name: str) -> str | None:
    if base is None:
        return f"{info.name} is for {name}, which the checkpoint does not have"
    shape = info.shape
    if info.dtype not in FLOATS or len(base.shape) != 2 or 0 in shape:
        return f"{info.name} is {info.dtype} {list(shape)}, and {name} {list(base.shape)}"
    rows, columns = base.shape
    if len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == columns and rows % shape[1] == 0:
        return None
    if len(shape) == 2 and shape[1] == rows and shape[0] <= columns:
        return None
    return f"{info.name} is {list(shape)}, which fits no {name} of {list(base.shape)}"


def _changed(checkpoint: Checkpoint, read: _AdapterReader, name: str, theirs: str) -> Rows:
    dtype = checkpoint.tensors[name].dtype

    def rows(start: int, count: int | None) -> NDArray[Any]:
        values, given = _wide(checkpoint.original(name, start, count), dtype), read.whole(theirs)
        (_in_blocks if given.ndim == 3 else _in_slices)(values, given, start)
        return _narrow(values, dtype)

    return rows


def _in_blocks(values: NDArray[Any], blocks: NDArray[np.float32], start: int) -> None:
    """W + (W D + D), block by block; the products of a sum are added in the order of a block's columns."""
    size = blocks.shape[1]
    own = (start + np.arange(len(values))) % size  # the row of D that each row of W adds
    for number, block in enumerate(blocks):
        part = values[:, number * size : (number + 1) * size]
        part += product(part.astype("<f4"), block) + block[own]


def _in_slices(values: NDArray[Any], added: NDArray[np.float32], start: int) -> None:
    """W plus the transpose of D in each slice of as many columns."""
    for first in range(0, values.shape[1], len(added)):
        part = values[:, first : first + len(added)]
        part += added[: part.shape[1], start : start + len(values)].T


def _whole(read: _AdapterReader, theirs: str, base: TensorInfo) -> Rows:
    def rows(start: int, count: int | None) -> NDArray[Any]:
        values = _narrow(read.rows(theirs), base.dtype).reshape(base.shape)
        return values if not base.shape else values[start : None if count is None else start + count]

    return rows


def _wide(raw: NDArray[Any], dtype: str) -> NDArray[Any]:
    """float32, or float64 as it is; never the array itself."""
    if dtype == "bf16":
        return bf16_to_float32(raw)
    return raw.astype("<f8" if dtype == "f64" else "<f4")


def _narrow(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Raw values of a type, each the nearest."""
    if dtype == "bf16":
        return (rounded("bf16", values).view("<u4") >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(NUMPY[dtype])


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


# ---- initial states -----------------------------------------------------------------------------------------------


def initial_states(path: Path, layers: int, numbers: int) -> NDArray[np.float32]:
    """A file of initial states alone, `numbers` a layer: [layers, heads, size, size], values by keys.

    Nothing of another size is read, whatever it says that it holds. Raises WorkerError.
    """
    with Checkpoint(path) as states:
        names = _state_names(states)
        read = _AdapterReader(states)
        wanted = [f"blocks.{layer}.att.time_state" for layer in range(layers)]
        problems = [f"{name} is missing" for name in wanted if name not in names]
        problems += [f"{name} is of no layer of the model" for name in names if name not in wanted]
        shapes = {states.tensors[name].shape for name in names.values()}
        kinds = {states.tensors[name].dtype for name in names.values()}
        if len(shapes) > 1 or any(len(shape) != 3 or shape[1] != shape[2] for shape in shapes) or kinds - set(FLOATS):
            problems.append("it does not hold floats [heads, size, size] for every layer")
        elif other := next((shape for shape in shapes if math.prod(shape) != numbers), None):
            problems.append(f"states of {list(other)}; the model has {numbers} numbers in a layer")
        _refuse(states, problems)
        return np.stack([read.rows(names[name]) for name in wanted])


def _state_names(states: Checkpoint) -> dict[str, str]:
    names = _names(states)
    if not names or any(not is_state(name) for name in names):
        other = next((name for name in names if not is_state(name)), None)
        what = "it holds nothing" if other is None else f"{other} is none"
        if other is not None and not any(map(is_state, names)):
            what = f"it holds {other} and the like"
        raise WorkerError(f"{states.name}: initial states are called blocks.N.att.time_state; {what}")
    return names


def _add_states(checkpoint: Checkpoint, states: Checkpoint) -> None:
    _put_states(checkpoint, states, _state_names(states))


def _put_states(checkpoint: Checkpoint, states: Checkpoint, names: Mapping[str, str]) -> None:
    """Every layer must have one of the model's size."""
    architecture = architecture_of(checkpoint.tensors)
    if architecture.n_head is None or architecture.head_size is None:
        raise WorkerError(f"{states.name}: version {architecture.version} has no state that could be set")
    shape = (architecture.n_head, architecture.head_size, architecture.head_size)
    wanted = [f"blocks.{layer}.att.time_state" for layer in range(architecture.n_layer)]
    problems = [f"{name} is missing" for name in wanted if name not in names]
    problems += [f"{name} is of no layer of the model" for name in names if name not in wanted]
    read = _AdapterReader(states)
    for name in wanted:
        info = states.tensors[names[name]] if name in names else None
        if info is None:
            continue
        if info.shape != shape or info.dtype not in FLOATS:
            problems.append(f"{name} is {info.dtype} {list(info.shape)}, not floats of {list(shape)}")
            continue
        checkpoint.replace(TensorInfo(name, info.dtype, shape), _raw(states, read, names[name]))
    _refuse(states, problems)


def _raw(states: Checkpoint, read: _AdapterReader, name: str) -> Callable[[int, int | None], NDArray[Any]]:
    def rows(start: int, count: int | None) -> NDArray[Any]:
        read.rows(name, start, count)  # refuses what is not finite
        return states.read(name, start, count)

    return rows
