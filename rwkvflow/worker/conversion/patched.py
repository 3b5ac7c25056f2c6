"""A model in F32 some of whose tensors hold what a quantized file makes of them: what each of them costs, alone.

Only the values differ: the file is run with the arithmetic of F32, so that all that is seen is the loss of weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rwkvflow.engine.binding import Model
from rwkvflow.worker.conversion.convert import ConversionJob
from rwkvflow.worker.conversion.opened import converted
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import threads_for
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.read.dequantize import BLOCK_BYTES, dequantize
from rwkvflow.worker.read.ggml_file import GgmlTensor, read_ggml_index
from rwkvflow.worker.read.gguf_file import GgufTensor, read_gguf_index
from rwkvflow.worker.write.native import find_library

Tensor = GgmlTensor | GgufTensor


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a `.bin` or a GGUF. Raises WorkerError."""
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return read_gguf_index(path).tensors if is_gguf else read_ggml_index(path).tensors


def values_of(path: Path, tensor: Tensor) -> np.ndarray:
    """The values of a tensor, float32. Raises WorkerError for a type that is not read here."""
    with path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.nbytes)
    if tensor.type == "f16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if tensor.type == "f32":
        return np.frombuffer(data, "<f4")
    if tensor.type not in BLOCK_BYTES:
        raise WorkerError(f"{tensor.name} is of type {tensor.type}, whose values are not told here")
    return dequantize(tensor.type, data)


class PatchedFile:
    """A file of F32 tensors that is changed in place and put right again."""

    def __init__(self, path: Path, library: Path, group_norm_eps: float | None) -> None:
        """The file is the caller's to remove. Raises WorkerError where it is none of these."""
        self.path, self.tensors = path, tensors_of(path)
        self.library, self.eps = library, group_norm_eps

    def open(self) -> Model:
        """The model as it is now. Raises EngineError."""
        return Model(self.path, self.library, threads_for(self.path.stat().st_size), self.eps)

    @contextmanager
    def with_values(self, names: Iterable[str], other: Path, tensors: Mapping[str, Tensor]) -> Iterator[Model]:
        """The model with these tensors as `other` holds them, whose `tensors` are given. Raises WorkerError."""
        kept: list[tuple[int, bytes]] = []
        try:
            for name in names:
                mine = self.tensors[name]
                values = values_of(other, tensors[name])
                if mine.type != "f32" or values.nbytes != mine.nbytes:
                    raise WorkerError(f"{name} is not the same tensor in {other.name}")
                with self.path.open("r+b") as file:
                    file.seek(mine.offset)
                    kept.append((mine.offset, file.read(mine.nbytes)))
                    file.seek(mine.offset)
                    file.write(values.astype("<f4").tobytes())
            with self.open() as model:
                yield model
        finally:
            with self.path.open("r+b") as file:
                for offset, data in kept:
                    file.seek(offset)
                    file.write(data)


@contextmanager
def in_f32(family: str, origin: Origin, engine: Path, eps: float | None) -> Iterator[tuple[PatchedFile, Model]]:
    """The model as a file of F32 that may be changed, and from another file, that is not. Raises WorkerError."""
    with converted(ConversionJob("f32", f"{family}-f32", Path("f32")), origin, engine, eps) as path:
        base = PatchedFile(path, find_library(engine), eps)
        shutil.copyfile(path, path.with_name("truth"))
        with PatchedFile(path.with_name("truth"), base.library, eps).open() as reference:
            yield base, reference


def layer_of(name: str) -> int | None:
    """The layer of a tensor by its name in a GGUF or a `.bin`; None for one of no layer."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] in ("blk", "blocks") and parts[1].isdigit() else None
