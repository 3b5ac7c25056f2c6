"""`onnx-*`: the folder passes onnx.checker, and onnxruntime runs it."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.onnx.layout import DATA, MODEL
from rwkvflow.worker.formats.runner import Task, one_by_one, threads_for
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.write.graph import EMPTY

EXPONENT = 3  # version 4's state that begins with EMPTY; it has five a layer


def run(task: Task, questions: Questions) -> Answers:
    """The answers of onnxruntime on the CPU. Raises WorkerError when a package refuses the folder."""
    try:
        onnx: Any = importlib.import_module("onnx")
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise WorkerError(f"onnx and onnxruntime cannot be loaded: {error}") from None
    with _of_one_name(task.artifact.resolve()) as folder:
        return _run(onnx, runtime, folder / MODEL, questions)


@contextmanager
def _of_one_name(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of it where a file has several names.

    Neither package follows a link to external data, and onnx refuses a file that has another name elsewhere, as one of
    a store has of which somebody made a copy with hard links.
    """
    if all(path.stat().st_nlink == 1 for path in folder.iterdir()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="onnx-") as copy:
        for path in folder.iterdir():
            shutil.copyfile(path, Path(copy) / path.name)
        yield Path(copy)


def _run(onnx: Any, runtime: Any, path: Path, questions: Questions) -> Answers:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkerError(f"onnx.checker refuses it: {_line(error)}") from None
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads_for(path.with_name(DATA).stat().st_size)
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise WorkerError(f"onnxruntime cannot load it: {_line(error)}") from None
    _, *states = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    has_exponent = any(state.name == "state_0_4" for state in states)

    def step(token: int, state: Any) -> tuple[Any, Any]:
        if state is None:
            state = [_fresh(given, has_exponent) for given in states]
        feed = {given.name: values for given, values in zip(states, state, strict=True)}
        *state, logits = session.run(names, {"input_id": np.array(token, np.int64), **feed})
        return np.asarray(logits, np.float32), state

    return one_by_one(step, questions, int(options.intra_op_num_threads))


def _fresh(given: Any, has_exponent: bool) -> Any:
    is_exponent = has_exponent and given.name.endswith(f"_{EXPONENT}")
    return np.full(given.shape, EMPTY if is_exponent else 0.0, np.float32)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
