"""`ncnn-*`: the ncnn runtime loads the folder and runs it in float32 on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.ncnn.layout import BIN, PARAM, names_of
from rwkvflow.worker.formats.runner import Task, one_by_one, threads_for
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.write.graph import states


def run(task: Task, questions: Questions) -> Answers:
    """The answers of ncnn. Raises WorkerError when it refuses the folder."""
    try:
        package: Any = importlib.import_module("ncnn")
    except ImportError as error:
        raise WorkerError(f"ncnn cannot be loaded: {error}") from None
    with task.open_source() as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
    net = package.Net()
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "vulkan_compute"):
        setattr(net.opt, f"use_{name}", False)
    net.opt.num_threads = threads_for((task.artifact / BIN).stat().st_size)
    for what, load in ((PARAM, net.load_param), (BIN, net.load_model)):
        if load(str(task.artifact / what)):
            raise WorkerError(f"ncnn cannot load {what}; the log above says why")
    names = names_of(architecture.version)
    inputs = [names.of(names.state, state.layer, state.index) for state in states(architecture)]
    outputs = [names.of(names.kept, state.layer, state.index) for state in states(architecture)]

    def step(token: int, state: Any) -> tuple[Any, Any]:
        if state is None:
            state = [np.full(item.shape, item.fill, np.float32) for item in states(architecture)]
        extractor = net.create_extractor()
        held = [np.array([token], np.int32), *state]  # ncnn does not copy what it is given
        for name, values in zip((names.token, *inputs), held, strict=True):
            if extractor.input(name, package.Mat(values)):
                raise WorkerError(f"ncnn knows no blob {name}")
        logits, *state = (_taken(extractor, name) for name in (names.logits, *outputs))
        return logits, state

    return one_by_one(step, questions, int(net.opt.num_threads))


def _taken(extractor: Any, name: str) -> Any:
    status, values = extractor.extract(name)
    if status:
        raise WorkerError(f"ncnn could not compute {name}: it answered {status}")
    return np.array(values, np.float32)
