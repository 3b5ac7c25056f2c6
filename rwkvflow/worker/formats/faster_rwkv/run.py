"""`faster-rwkv-*`: PyPI's msgpack reads it as faster-rwkv does, and our own forward pass runs it.

That pass is in fp32, or for `-f16` in fp16, as the CUDA strategy of such a file is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.faster_rwkv.layout import FasterRwkv
from rwkvflow.worker.formats.runner import IN_HALF, Task, answer
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.rounding import rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.reference.primitives import layer_norm
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held
from rwkvflow.worker.smoke.questions import Answers, Questions

Values = NDArray[Any]
DTYPES = {"torch.float16": ("f16", "<f2"), "torch.float32": ("f32", "<f4")}
VERSIONS = {"4": "4", "5.0": "5", "5.1": "5.1", "5.2": "5.2"}
UNITS = {"bf16": 2.0**-8, "f16": 2.0**-10}  # half a unit of the checkpoint's type more or less, of the largest value


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError when msgpack cannot read the file, or it does not hold what the checkpoint holds."""
    with task.open_source() as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
        artifact = FrFile(task.artifact)
        _compare_numbers(artifact, architecture)
        if not isinstance(task.format, FasterRwkv):
            raise WorkerError(f"{task.format.name} is no format for faster-rwkv")
        dtype = task.format.dtype
        wanted = {
            info.name: _held(info, architecture, checkpoint, dtype)
            for info in checkpoint.tensors.values()
            if not info.name.startswith("blocks.0.ln0.")
        }
        compare_held(checkpoint, artifact, wanted)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        answers = answer(
            Reference(view, task.group_norm_eps, architecture=architecture, in_half=dtype == "f16"), questions
        )
    note = "msgpack read it as faster-rwkv does, and its tensors are the checkpoint's"
    return replace(answers, note=f"{note}; {IN_HALF}" if dtype == "f16" else note)


class FrFile:
    """A .fr in memory. The rows of its embedding are one tensor here, emb.weight."""

    def __init__(self, path: Path) -> None:
        """Raises WorkerError for what is no .fr."""
        import msgpack  # type: ignore[import-not-found, import-untyped, unused-ignore]

        try:
            self.content: dict[str, Any] = msgpack.unpackb(path.read_bytes())
            rows = [_values(row) for row in self.content["embd_weights"]]
            self._values = {"emb.weight": np.stack(rows)}
            self._values |= {name: _values(tensor) for name, tensor in self.content["weights"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, msgpack.exceptions.UnpackException) as error:
            raise WorkerError(f"msgpack cannot read it: {type(error).__name__}: {error}") from None
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, {2: "f16", 4: "f32"}[values.itemsize], values.shape)
            for name, values in self._values.items()
        }

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        values = self._values[name]
        if values.ndim:
            values = values[start_row : len(values) if rows is None else start_row + rows]
        return values.astype("<f4")


def _values(tensor: dict[str, Any]) -> Values:
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]][1]).reshape(tensor["shape"])


def _compare_numbers(artifact: FrFile, architecture: Architecture) -> None:
    expected: dict[str, Any] = {
        "version": VERSIONS.get(architecture.version),
        "n_layer": architecture.n_layer,
        "n_embd": architecture.n_embd,
        "n_att": architecture.n_att,
        "n_ffn": architecture.n_ffn,
        "n_head": architecture.n_head,
    }
    for key, value in expected.items():
        if artifact.content.get(key) != value:
            raise WorkerError(f"{key} is {artifact.content.get(key)!r} in the artifact; {value!r} is expected")


def _held(info: TensorInfo, architecture: Architecture, checkpoint: Checkpoint, dtype: str) -> Held:
    name, shape = info.name.replace(".time_faaaa", ".time_first"), tuple(info.shape)
    if name == "emb.weight":
        weight, bias = (checkpoint.float32(f"blocks.0.ln0.{part}") for part in ("weight", "bias"))

        def fold(values: Values) -> Values:
            return rounded(info.dtype, layer_norm(values, weight, bias))

        return Held(name, dtype, shape, fold, tolerance=UNITS.get(info.dtype, 2.0**-10))
    if ".time_decay" in name or ".time_first" in name:
        return _per_head(name, info, architecture)
    if ".ln_x" in name:
        return Held(name, "f32", shape)
    if ".time_" in name:
        return Held(name, dtype, (info.numel,), lambda values: values.reshape(-1), lambda values: values)
    if len(shape) == 2:
        halvings = 1.0
        if dtype == "f16" and name.endswith(("att.output.weight", "ffn.value.weight")):
            halvings = 2.0 ** (int(name.split(".")[1]) // 6)
        factor = np.float32(halvings)
        return Held(name, dtype, shape[::-1], lambda values: values.T / factor, lambda values: values.T * factor)
    return Held(name, dtype, shape)


def _per_head(name: str, info: TensorInfo, architecture: Architecture) -> Held:
    version, heads = architecture.version, architecture.n_head or 1
    shape = {"4": (info.numel,), "5.2": (heads, info.numel // heads, 1)}.get(version, (info.numel, 1, 1))
    change: Callable[[Values], Values] = lambda values: values  # noqa: E731
    back = change
    if ".time_decay" in name:
        change = (lambda x: -np.exp(x)) if version == "4" else (lambda x: np.exp(-np.exp(x)))
        back = (lambda x: np.log(-x)) if version == "4" else (lambda x: np.log(-np.log(x)))
    elif version != "4" and info.name == name:
        change, back = np.exp, np.log

    def quiet(values: Values) -> Values:
        with np.errstate(divide="ignore"):
            return back(values)

    return Held(name, "f32", shape, change, quiet, tolerance=1e-6)
