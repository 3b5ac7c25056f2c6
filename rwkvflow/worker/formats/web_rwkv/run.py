"""`web-rwkv`: the file is compared with the checkpoint, and run by PyPI's web-rwkv-py where that can.

web-rwkv-py needs Vulkan, if only Mesa's in software, and knows versions 4, 5 (with a gate) and 6. Its logits are
compared after a few lengths of the text: it takes a second for each, and in software Vulkan the same tokens now and
then give other values. So the figures of the report are those of a forward pass over what the file holds, in fp16 as
web-rwkv stores everything but states and logits, and the report says what ran.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import IN_HALF, Task, answer
from rwkvflow.worker.maps.web_rwkv import is_swapped, name_in_file, repeated
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import WORLD
from rwkvflow.worker.model.versions import HEAD_NORM_EPS
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held, swap
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.safetensors_reader import SafetensorsFile

RUNS = frozenset({"4", "5.1", "5.2", "6"})
SECONDS = 1800
LARGEST = 0.25  # difference from its tensors' logits; 0.02 is usual, a matrix the wrong way around gives 2 and more
TRIES = 3


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError when the file does not hold what the checkpoint holds, or its runtime refuses it."""
    with task.open_source() as checkpoint, SafetensorsFile(task.artifact) as artifact:
        architecture = architecture_of(checkpoint.tensors)
        wanted = {name: held(info, architecture) for name, info in checkpoint.tensors.items()}
        compare_held(checkpoint, artifact, wanted)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        answers = answer(Reference(view, task.group_norm_eps, architecture=architecture, in_half=True), questions)
    note = f"its tensors were compared with the checkpoint's, and {IN_HALF}"
    why = cannot_run(architecture, task.group_norm_eps)
    found = why or _in_a_process_of_its_own(task, questions.text[: questions.logits], answers.logits)
    if isinstance(found, str):
        return replace(answers, note=f"{note}; not run by web-rwkv-py: {found}")
    worst = max(found.values())
    if not worst <= LARGEST:
        raise WorkerError(
            f"web-rwkv-py's logits differ by {worst:.3g} of the standard deviation from those of the file's tensors"
        )
    return replace(answers, note=f"{note}; web-rwkv-py ran it after {', '.join(found)} tokens")


def held(info: TensorInfo, architecture: Architecture) -> Held:
    """Where the file should hold a tensor of the checkpoint."""
    name, shape = name_in_file(info.name), tuple(info.shape)
    times = repeated(name, architecture)
    if times > 1:
        return Held(
            name,
            "f16",
            (info.numel, times),
            lambda values: np.repeat(values.reshape(-1, 1), times, axis=1),
            lambda values: values[:, 0],
        )
    if is_swapped(name):
        return Held(name, "f16", (*shape[:-2], shape[-1], shape[-2]), swap, swap)
    return Held(name, "f16", shape)


def cannot_run(architecture: Architecture, group_norm_eps: float | None) -> str | None:
    """Why web-rwkv-py is not asked, None where it is."""
    if architecture.version not in RUNS:
        return f"it does not know version {architecture.version}"
    if architecture.n_vocab != WORLD:
        return f"it wants a vocabulary of {WORLD}, and this is one of {architecture.n_vocab}"
    if group_norm_eps not in (None, HEAD_NORM_EPS) and architecture.version != "4":
        return f"its head group norm has an epsilon of {HEAD_NORM_EPS:g}, and the recipe says {group_norm_eps:g}"
    return None


def _in_a_process_of_its_own(
    task: Task, tokens: tuple[int, ...], logits: NDArray[np.float32]
) -> dict[str, float] | str:
    """How far the runtime is from `logits` [n, V] by the number of tokens read, or why it cannot start.

    Without Vulkan some versions of it end their process.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, expected, order, answers = (Path(folder) / x for x in ("model.st", "expected.npy", "order", "answers"))
        model.symlink_to(task.artifact.resolve())
        np.save(expected, logits)
        order.write_text(json.dumps({"model": str(model), "tokens": tokens, "expected": str(expected)}))
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "MESA_SHADER_CACHE_DIR": folder}
        command = [sys.executable, "-m", __name__, str(order), str(answers)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise WorkerError(f"web-rwkv-py was still running after {SECONDS} s") from None
        if done.returncode == 0:
            found: dict[str, float] = json.loads(answers.read_text())
            return found
        text = done.stderr
        if "No module named 'web_rwkv_py'" in text:
            return "it is not installed"
        if re.search(r"failed to request (device|adapter)|no (suitable )?(graphics )?adapter", text, re.IGNORECASE):
            return (
                "there is no Vulkan driver here. `rwkvflow image bootstrap --package mesa-vulkan-drivers` makes a "
                "base image with one, for `image.base`; on the host, install mesa-vulkan-drivers or a GPU's driver"
            )
        lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise WorkerError(f"web-rwkv-py cannot run it: {lines[-1].strip()[:500]}")


def lengths(tokens: int) -> list[int]:
    """After how many tokens the runtime is asked for logits."""
    return sorted({min(tokens, length) for length in (2, 8, 32)})


def main(argv: list[str]) -> int:
    """Compares web-rwkv-py's logits with those of an order; the largest differences go to the other file."""
    import web_rwkv_py  # type: ignore[import-not-found, unused-ignore]

    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    expected = np.load(order["expected"], allow_pickle=False).astype(np.float64)
    spread = float(expected.std()) or 1.0
    found: dict[str, float] = {}
    for length in lengths(len(order["tokens"])):
        best = math.inf
        for _ in range(TRIES):
            model = web_rwkv_py.Model(order["model"])  # anew: a used one keeps part of its state
            row = np.asarray(model.run(order["tokens"][:length]), np.float64).reshape(-1)
            if row.shape == expected[length - 1].shape:
                best = min(best, float(np.abs(row - expected[length - 1]).max()) / spread)
            if best <= LARGEST:
                break
        found[str(length)] = best
    Path(argv[1]).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
