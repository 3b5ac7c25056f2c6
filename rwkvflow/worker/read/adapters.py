"""LoRA that is merged into a checkpoint, and initial states that go along with it, as its tensors are read.

A LoRA file of RWKV-LM-LoRA (Blealtan) or RWKV-PEFT holds, for a matrix X.weight [out, in], X.lora_A [r, in] and
X.lora_B [out, r], and beside them whole tensors that were trained as well and take the place of the checkpoint's. The
merged matrix is W + (alpha / r) · B A. It is computed in float32, the r products added one after the other, and rounded
to the checkpoint's type; no library for matrices is asked, for their sums depend on the processor.

A file of initial states, as RWKV-PEFT's state tuning saves it, holds blocks.N.att.time_state [heads, size, size].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import architecture_of, is_state
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.rounding import bf16_to_float32, rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.checkpoint import NUMPY, Checkpoint, Rows

FLOATS: Final = ("f64", "f32", "f16", "bf16")
BLOCK: Final = 1 << 15  # values of a matrix at a time: they stay in a core's cache while the products are added
SHOWN: Final = 4
_PAIR = re.compile(r"(.+)\.lora_([AB])")
_OURS = ("blocks.", "emb.", "head.", "ln_out.")
_OTHERS = {
    r".*\.(bone|disha)": "Bone and DiSHA are other adapters; merge them with RWKV-PEFT's own script",
    r".*\.init_lora_[AB]": "these are the matrices that PiSSA began with; merge it with RWKV-PEFT's own script",
    r"base_model\..*|.*\.lora_(?:[AB]\.(?:\w+\.)?weight|(?:magnitude_vector|embedding_[AB])(?:\..*)?)": (
        "these are the names of PEFT's own adapters; merge them with its merge_and_unload()"
    ),
}


def apply(checkpoint: Checkpoint, origin: Origin) -> None:
    """Merges and adds what the origin names beside the checkpoint. Raises WorkerError with the tensors' names."""
    if origin.lora is not None:
        _merge(checkpoint, _opened(checkpoint, origin.lora, "a LoRA"), origin.alpha)
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


def _merge(checkpoint: Checkpoint, lora: Checkpoint, alpha: float | None) -> None:
    if alpha is None or not math.isfinite(alpha) or alpha <= 0:
        raise WorkerError(f"{lora.name}: a LoRA is merged with the alpha that it was trained with, a number above 0")
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for ours, theirs in _names(lora).items():
        if match := _PAIR.fullmatch(ours):
            pairs.setdefault(match[1], {})[match[2]] = theirs
        else:
            whole[ours] = theirs
    if not pairs:
        hint = _hint(lora.tensors)  # under the names of the file
        raise WorkerError(f"{lora.name}: no LoRA: there are no tensors *.lora_A and *.lora_B in it.{hint}")
    problems = []
    read = _AdapterReader(lora)
    for stem, pair in pairs.items():
        name = f"{stem}.weight"
        if problem := _mismatch(checkpoint, lora, name, stem, pair):
            problems.append(problem)
            continue
        rank = lora.tensors[pair["A"]].shape[0]
        merged = _merged(checkpoint, read, name, pair, np.float32(alpha / rank))
        checkpoint.replace(checkpoint.tensors[name], merged)
    states = {ours: theirs for ours, theirs in whole.items() if is_state(ours)}
    for ours, theirs in whole.items():
        if ours in states:
            continue
        info, base = lora.tensors[theirs], checkpoint.tensors.get(ours)
        if base is None:
            problems.append(f"{ours} is none of the checkpoint's tensors{_hint([ours])}")
        elif _squeezed(info.shape) != _squeezed(base.shape) or info.dtype not in FLOATS:
            problems.append(f"{ours} is {info.dtype} {list(info.shape)} and {list(base.shape)} in the checkpoint")
        else:
            checkpoint.replace(base, _whole(read, theirs, base))
    _refuse(lora, problems)
    if states:
        _put_states(checkpoint, lora, states)


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


def _merged(
    checkpoint: Checkpoint, read: _AdapterReader, name: str, pair: Mapping[str, str], factor: np.float32
) -> Rows:
    dtype = checkpoint.tensors[name].dtype

    def rows(start: int, count: int | None) -> NDArray[Any]:
        values = _wide(checkpoint.original(name, start, count), dtype)
        a, b = read.whole(pair["A"]), read.rows(pair["B"], start, count)
        step = max(1, BLOCK // max(1, a.shape[1]))
        for first in range(0, len(values), step):
            values[first : first + step] += product(b[first : first + step], a) * factor
        return _narrow(values, dtype)

    return rows


def product(b: NDArray[np.float32], a: NDArray[np.float32]) -> NDArray[np.float32]:
    """b [n, r] times a [r, m] in float32, the products of each sum added in the order of r, each rounded."""
    total = b[:, :1] * a[:1]
    one = np.empty_like(total)
    for k in range(1, len(a)):
        np.multiply(b[:, k, None], a[k], out=one)
        np.add(total, one, out=total)
    return total


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
