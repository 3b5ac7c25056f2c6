"""`mlx*`: every tensor of the folder is compared with the checkpoint, and our own forward pass runs what they hold.

MLX's wheels for Linux want a C library that is newer than what an environment may be made for (glibc 2.35), so mlx-lm
itself runs such folders in the tests: tests/engine/test_mlx.py. Where the folder brings the World tokenizer,
transformers, which mlx-lm reads tokenizers with, must read and write what the vocabulary says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.equal import as_it_is, can_be_equal
from rwkvflow.worker.formats.mlx import blocks
from rwkvflow.worker.formats.mlx.layout import FINER, Mlx
from rwkvflow.worker.formats.runner import IN_HALF, Task, answer
from rwkvflow.worker.formats.transformers.run import check_tokenizer
from rwkvflow.worker.maps.huggingface import name_of
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.rounding import rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import WORLD_FILE
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held, swap
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.safetensors_reader import SafetensorsFile

Values = NDArray[Any]
Change = Callable[[Values], Values]


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError when the folder does not hold what the checkpoint holds, or says something else of it."""
    if not isinstance(task.format, Mlx):
        raise WorkerError(f"{task.format.name} is no format of MLX")
    folder = task.artifact.resolve()
    if (folder / WORLD_FILE).is_file():
        check_tokenizer(folder)
    whole = folder / "model.safetensors"
    with task.open_source() as checkpoint, SafetensorsFile(whole if whole.is_file() else folder) as file:
        architecture = architecture_of(checkpoint.tensors)
        artifact = MlxTensors(file)
        wanted = {
            name: held
            for name, info in checkpoint.tensors.items()
            if (held := _held(info, task.format.bits)) is not None
        }
        _compare_config(folder / "config.json", architecture, artifact, task.format.bits)
        compare_held(checkpoint, artifact, wanted)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        in_half = task.format.computes_in_half(architecture)
        if can_be_equal(task.checkpoint, task.format) and as_it_is(checkpoint.tensors, wanted):
            questions = questions.of_equal()
        reference = Reference(view, task.group_norm_eps, architecture=architecture, in_half=in_half)
        answers = answer(reference, questions)
    note = "its tensors were compared with the checkpoint's"
    return replace(answers, note=f"{note}, and {IN_HALF}" if in_half else note)


def _held(info: TensorInfo, bits: int) -> Held | None:
    """Where the folder should hold a tensor of the checkpoint; None where it has no place for it."""
    name = name_of("7", info.name)
    if name is None:
        return None
    dtype, shape = "f32" if info.dtype == "f64" else info.dtype, tuple(info.shape)
    turned = name.endswith((".lora.0.weight", ".lora.2.weight"))
    if turned:
        shape = shape[::-1]
    if bits and name.endswith(".weight") and len(shape) == 2 and not shape[1] % blocks.GROUP:
        finer = "lora.2" in name or "embeddings" in name
        return _quantized(name, dtype, shape, FINER if finer else bits, turned)
    if turned:
        return Held(name, dtype, shape, swap, swap)
    if ".attn.x_" in name:
        return Held(name, dtype, (1, 1, info.numel), lambda values: values.reshape(1, 1, -1), np.ravel)
    if len(shape) > 1 and not name.endswith(("weight", "r_k")):
        return Held(name, dtype, (info.numel,), np.ravel, np.ravel)
    return Held(name, dtype, shape)


def _quantized(name: str, dtype: str, shape: tuple[int, ...], bits: int, turned: bool) -> Held:
    def change(values: Values) -> Values:
        values = rounded(dtype, swap(values) if turned else values)
        scales, biases = (rounded(dtype, found) for found in blocks.steps(values, bits))
        return _unpacked(blocks.packed(values, bits), scales, biases)

    return Held(name, f"{bits} bits of {dtype}", shape, change, swap if turned else None)


def _unpacked(packed: Values, scales: Values, biases: Values) -> Values:
    """The values of bytes [rows, n] with float32 [rows, columns / 64]: scale * q + bias."""
    rows, columns = len(scales), scales.shape[1] * blocks.GROUP
    if packed.shape[1] == columns:
        q = packed
    else:
        three = packed.reshape(rows, -1, 3).astype(np.uint32)
        joined = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
        q = np.stack([joined >> 6 * part & 63 for part in range(4)], axis=-1)
    values = q.reshape(rows, -1, blocks.GROUP).astype(np.float32) * scales[..., None] + biases[..., None]
    return np.asarray(values, np.float32).reshape(rows, columns)


class MlxTensors:
    """A folder's tensors under its own names; a quantized matrix is one of them, of its values."""

    def __init__(self, file: SafetensorsFile) -> None:
        """Raises WorkerError for a quantized matrix that is not whole."""
        self._file = file
        self.tensors: Mapping[str, TensorInfo] = dict(self._found())

    def _found(self) -> dict[str, TensorInfo]:
        found = {}
        for name, info in self._file.tensors.items():
            stem, _, end = name.rpartition(".")
            if end in ("scales", "biases") and f"{stem}.weight" in self._file.tensors:
                continue
            if end == "weight" and info.dtype == "u32":
                found[name] = self._matrix(stem, info)
            else:
                found[name] = info
        return found

    def _matrix(self, stem: str, info: TensorInfo) -> TensorInfo:
        parts = [self._file.tensors.get(f"{stem}.{end}") for end in ("scales", "biases")]
        scales = parts[0]
        if scales is None or parts[1] is None or len(scales.shape) != 2 or len(info.shape) != 2:
            raise WorkerError(f"{stem} has not a weight, scales and biases")
        columns = scales.shape[1] * blocks.GROUP
        bits = info.shape[1] * 32 // columns
        if (parts[1].shape, parts[1].dtype) != (scales.shape, scales.dtype) or scales.shape[0] != info.shape[0]:
            raise WorkerError(f"{stem}: scales are {list(scales.shape)}, and biases {list(parts[1].shape)}")
        return TensorInfo(info.name, f"{bits} bits of {scales.dtype}", (info.shape[0], columns))

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        if self._file.tensors[name].dtype != "u32":
            return self._file.float32(name, start_row, rows)
        stem = name.removesuffix("weight")
        packed = np.ascontiguousarray(self._file.raw(name, start_row, rows)).view(np.uint8)
        scales, biases = (self._file.float32(f"{stem}{end}", start_row, rows) for end in ("scales", "biases"))
        return _unpacked(packed, scales, biases)


def _compare_config(path: Path, architecture: Architecture, artifact: MlxTensors, bits: int) -> None:
    """Raises WorkerError unless config.json says what mlx-lm makes the model by."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"config.json cannot be used: {error}") from None
    lora = architecture.lora
    expected: dict[str, Any] = {
        "model_type": "rwkv7",
        "vocab_size": architecture.n_vocab,
        "hidden_size": architecture.n_embd,
        "intermediate_size": architecture.n_ffn,
        "num_hidden_layers": architecture.n_layer,
        "head_dim": architecture.head_size,
        "norm_eps": 1e-5,
        "decay_low_rank_dim": lora["w"],
        "gate_low_rank_dim": lora["g"],
        "a_low_rank_dim": lora["a"],
        "v_low_rank_dim": lora.get("v", lora["a"]),
        "tie_word_embeddings": False,
    }
    if bits:
        finer = [name for name, info in artifact.tensors.items() if info.dtype.startswith(f"{FINER} bits")]
        expected["quantization"] = {
            "group_size": 64,
            "bits": bits,
            "mode": "affine",
            **{name.removesuffix(".weight"): {"bits": FINER} for name in finer},
        }
    for key, value in expected.items():
        if config.get(key) != value:
            raise WorkerError(f"{key} is {str(config.get(key))[:200]} in config.json; {str(value)[:200]} is expected")
