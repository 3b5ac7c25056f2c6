"""Runs artifacts with the software that users run them with, in a process of its own: a crash fails one artifact.

    python3 -m rwkvflow.worker.smoke.consumers ORDER.json

The order lists artifacts; for each, the answers go to `<answers>` or a message to `<answers>.error`. A process that
dies leaves neither for the artifact that killed it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.model.origin import origin_of
from rwkvflow.worker.protocol import WorkerError, progress
from rwkvflow.worker.read.checkpoint import Checkpoint, Origin, TensorInfo, bf16_to_float32, open_checkpoint
from rwkvflow.worker.read.shards import files_of
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.questions import Answers, Questions, read_reference, write_answers
from rwkvflow.worker.smoke.scores import Scores

COMPARED_BYTES = 1 << 24  # of a tensor at a time
HEAD_TOKENS = 128  # whose logits the forward pass computes at a time


@dataclass(frozen=True)
class Task:
    """One artifact to run."""

    artifact: Path
    checkpoint: Path | Origin
    engine: Path  # folder with lib/librwkv.*
    group_norm_eps: float | None
    format: str = ""


def run_engine(task: Task, questions: Questions) -> Answers:
    """`ggml-*`: the engine library, through its C API. Raises WorkerError when it refuses the file."""
    from rwkvflow.engine.binding import Model
    from rwkvflow.engine.errors import EngineError

    threads = threads_for(task.artifact.stat().st_size)
    try:
        with Model(
            task.artifact,
            library=_library(task.engine),
            threads=threads,
            group_norm_eps=task.group_norm_eps,
        ) as model:

            def step(token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
                logits, state = model.eval(token, state)
                return np.asarray(logits, np.float32), state

            return one_by_one(step, questions, threads)
    except EngineError as error:
        raise WorkerError(f"the engine refused it: {error}") from None


def one_by_one(
    step: Callable[[int, Any], tuple[NDArray[np.float32], Any]], questions: Questions, threads: int | None
) -> Answers:
    """Answers of a model that takes a token and a state (None: fresh) and returns logits [V] and the next state.

    `threads` is how many it works with, for the report; None where nobody knows.
    """
    scores = Scores(questions)
    state = None
    for at, token in enumerate(questions.text):
        start = time.perf_counter()
        logits, state = step(token, state)
        if questions.speed:
            scores.took(time.perf_counter() - start)
        scores.take(logits[None])
        if not at % 64:
            progress(at, len(questions.text), "tokens")
    continuations = []
    for prompt in questions.prompts:
        state, out = None, []
        for token in prompt:
            logits, state = step(token, state)
        for left in reversed(range(questions.tokens)):
            out.append(int(logits.argmax()))
            if left:
                logits, state = step(out[-1], state)
        continuations.append(tuple(out))
    return scores.answers(tuple(continuations), threads=threads, runtime=True)


def _library(engine: Path) -> Path:
    found = sorted(path for path in (engine / "lib").glob("librwkv.*") if path.suffix in (".so", ".dylib"))
    if not found:
        raise WorkerError("the engine has no lib/librwkv.so: its build step kept no library")
    return found[0]


def threads_for(size: int) -> int:
    """One thread for every 32 MiB of weights: for less the threads wait for each other longer than they work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, size >> 25))


def run_safetensors(task: Task, questions: Questions) -> Answers:
    """`safetensors`: read by PyPI's safetensors; every tensor must equal the checkpoint's, and then runs in fp32."""
    with open_checkpoint(task.checkpoint) as checkpoint, SafetensorsFile(task.artifact) as artifact:
        compare_tensors(checkpoint, artifact)
        return answer(Reference(artifact, task.group_norm_eps), questions)


def answer(reference: Reference, questions: Questions) -> Answers:
    """The answers of the fp32 forward pass."""
    hidden = reference.hidden([reference.start()], [questions.text])[0]
    scores = Scores(questions)
    for start in range(0, len(hidden), HEAD_TOKENS):
        scores.take(reference.logits(hidden[start : start + HEAD_TOKENS]))
    continuations = tuple(tuple(row) for row in reference.greedy(questions.prompts, questions.tokens))
    return scores.answers(continuations, threads=None, runtime=False)


def compare_tensors(checkpoint: Checkpoint, artifact: SafetensorsFile) -> None:
    """Raises WorkerError unless both hold the same names with the same types, shapes and bytes."""
    missing = [name for name in checkpoint.tensors if name not in artifact.tensors]
    added = [name for name in artifact.tensors if name not in checkpoint.tensors]
    if missing or added:
        what = f"lacks {missing[0]!a}" if missing else f"has {added[0]!a} besides"
        raise WorkerError(f"the artifact {what}: its tensors are not the checkpoint's")
    total, done = sum(info.nbytes for info in checkpoint.tensors.values()), 0
    for name, info in checkpoint.tensors.items():
        found = artifact.tensors[name]
        if (found.shape, found.dtype) != (tuple(info.shape), info.dtype):
            raise WorkerError(
                f"{name} is {found.dtype} {list(found.shape)} in the artifact "
                f"and {info.dtype} {list(info.shape)} in the checkpoint"
            )
        for start, rows in _row_slices(info.shape, info.nbytes):
            ours, theirs = checkpoint.read(name, start, rows), artifact.raw(name, start, rows)
            if ours.tobytes() != theirs.tobytes():
                raise WorkerError(f"{name} has other bytes in the artifact than in the checkpoint")
        done += info.nbytes
        progress(done, total, "B", name)


def _row_slices(shape: tuple[int, ...], nbytes: int) -> Iterator[tuple[int, int | None]]:
    if not shape or not shape[0]:
        yield 0, None
        return
    step = max(1, COMPARED_BYTES * shape[0] // max(nbytes, 1))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


class SafetensorsFile:
    """A .safetensors, or a folder of its parts, through PyPI's safetensors, with the interface that Reference reads.

    Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        """Raises WorkerError when the package refuses the file."""
        import safetensors

        self._failure = safetensors.SafetensorError
        try:
            self._files: list[Any] = [safetensors.safe_open(str(part), framework="np") for part in files_of(path)]
        except (self._failure, OSError) as error:
            raise WorkerError(f"the safetensors package refuses it: {error}") from None
        self._holders: dict[str, Any] = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self._slices: dict[str, Any] = {name: file.get_slice(name) for name, file in self._holders.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, str(part.get_dtype()).lower(), tuple(part.get_shape()))  # F32 is our f32
            for name, part in self._slices.items()
        }

    def __enter__(self) -> SafetensorsFile:
        for file in self._files:
            file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.__exit__(*error)

    def raw(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[Any]:
        """Rows of a tensor in its own type; bf16 as uint16."""
        part, info = self._slices[name], self.tensors[name]
        with _bfloat16_as_bits():
            if not info.shape or (rows is None and not start_row):
                found = np.asarray(self._holders[name].get_tensor(name))
            else:
                found = np.asarray(part[start_row : info.shape[0] if rows is None else start_row + rows])
        return found.view(np.uint16) if info.dtype == "bf16" else found

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as float32."""
        raw = self.raw(name, start_row, rows)
        return bf16_to_float32(raw) if self.tensors[name].dtype == "bf16" else raw.astype(np.float32)


@contextlib.contextmanager
def _bfloat16_as_bits() -> Iterator[None]:
    """numpy has no bfloat16, and the package asks numpy for the dtype of that name: lend it uint16."""
    known: dict[Any, Any] = np.sctypeDict
    if "bfloat16" in known:  # of ml_dtypes, which onnx imports
        yield
        return
    known["bfloat16"] = np.uint16
    try:
        yield
    finally:
        del known["bfloat16"]


# By the beginning of a format's name, up to a dash or its end: a function here, or the module whose `run` it is.
CONSUMERS: Mapping[str, Callable[[Task, Questions], Answers] | str] = {
    "ggml": run_engine,
    "gguf": "rwkvflow.worker.formats.gguf.run",
    "transformers": "rwkvflow.worker.formats.transformers.run",
    "safetensors": run_safetensors,
    "safetensors-f16": "rwkvflow.worker.formats.safetensors.run",
    "safetensors-f32": "rwkvflow.worker.formats.safetensors.run",
    "chatrwkv": "rwkvflow.worker.formats.chatrwkv.run",
    "faster-rwkv": "rwkvflow.worker.formats.faster_rwkv.run",
    "web-rwkv": "rwkvflow.worker.formats.web_rwkv.run",
    "onnx": "rwkvflow.worker.formats.onnx.run",
    "ncnn": "rwkvflow.worker.formats.ncnn.run",
}


def consumer_of(name: str) -> Callable[[Task, Questions], Answers]:
    """The consumer of a format: that of the longest beginning of its name. Raises WorkerError."""
    parts = name.split("-")
    for count in range(len(parts), 0, -1):
        found = CONSUMERS.get("-".join(parts[:count]))
        if isinstance(found, str):
            run: Callable[[Task, Questions], Answers] = importlib.import_module(found).run
            return run
        if found is not None:
            return found
    raise WorkerError(f"nothing here can run the format {name}")


def main(argv: list[str]) -> int:
    """Runs one order after the other; exits with 0 when each has answers or a message."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    questions = read_reference(Path(order["reference"])).asked(speed=order.get("speed", False))
    origin = origin_of(Path(order["checkpoint"]).parent, order)
    for entry in order["artifacts"]:
        answers = Path(entry["answers"])
        task = Task(
            Path(entry["artifact"]),
            replace(origin, format=entry["format"]),
            Path(order["engine"]),
            order["group_norm_eps"],
            entry["format"],
        )
        partial = answers.with_suffix(".part")
        try:
            write_answers(partial, consumer_of(entry["format"])(task, questions))
            partial.rename(answers)
        except (WorkerError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            answers.with_suffix(".error").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
