"""`chatrwkv-*`: the `rwkv` package runs the file in the types of its strategy, also in fp16 and bf16.

Without a GPU the package runs on the processor what is for one: the same operations on the same tensors, stored in the
same types. Such a file must also equal what the package itself writes for its strategy, tensor by tensor. What is too
large to be run here is only compared, and the answers are those of the fp32 forward pass over what it holds.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.chatrwkv import layout as chatrwkv
from rwkvflow.worker.formats.chatrwkv import strategy as strategies
from rwkvflow.worker.formats.runner import Task, answer, one_by_one
from rwkvflow.worker.model.architecture import Architecture, architecture_of, is_state
from rwkvflow.worker.model.rounding import rounded
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import HEAD_NORM_EPS, RESCALE_EVERY
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.reference.memory import room
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held
from rwkvflow.worker.smoke.questions import Answers, Questions

# torch sums a row of the embedding in another order than we do, and which order depends on the processor: a unit in the
# last place of the type that the sum is rounded to, and one of the type that it is stored in.
UNITS = {"bf16": 2.0**-7, "f16": 2.0**-10, "f32": 2.0**-20}
ROW_SUM = 1e-6  # and so much where values cancel
# What torch's exp promises differs with the library that it calls on a processor: below 1 unit in the last place for
# MKL's vsExp (VML_HA) and for SLEEF's expf (u10), 0.57 for ours (model.exact). A unit is at most 2^-23 of the value.
EXP_ERROR = (1.0 + 0.57) * 2.0**-23
SMALLEST_NORMAL = 2.0**-126


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError when the package refuses the file, or would have written another one."""
    if not isinstance(task.format, chatrwkv.ChatRwkv):
        raise WorkerError(f"{task.format.name} is no format for the rwkv package")
    strategy = task.format.strategy
    with task.open_source() as checkpoint, open_checkpoint(task.artifact) as artifact:
        architecture = architecture_of(checkpoint.tensors)
        other_eps = task.group_norm_eps not in (None, HEAD_NORM_EPS) and architecture.version != "4"
        _compare_states(checkpoint, artifact)
        on_gpu = any(stage.device != "cpu" for stage in strategies.parse(strategy))
        why = _cannot_run(task, strategy) if on_gpu else None
        if other_eps:
            why = "it has an epsilon of 64e-5 in its head group norm, and the recipe another"
        if not on_gpu and not why:
            return _run(task, strategy, architecture, questions)
        note = f"not run by the rwkv package: {why}"
        if not why:
            note = "run by the rwkv package in the types of its strategy, on the processor"
        if architecture.version == "7":
            dtype = artifact.tensors["emb.weight"].dtype if "emb.weight" in artifact.tensors else "f16"
            wanted = {name: Held(name, dtype, tuple(info.shape)) for name, info in checkpoint.tensors.items()}
            compare_held(checkpoint, artifact, wanted)
            note += "; each tensor is the checkpoint's, in the strategy's type"
        else:
            _compare_with_package(task, checkpoint, artifact, strategy, architecture)
            wanted = {
                info.name: _held(info, architecture, artifact)
                for info in checkpoint.tensors.values()
                if info.name not in chatrwkv.LN0
            }
            note += "; it equals what the package itself writes for this strategy"
        if not why:
            return replace(_run(task, strategies.on_processor(strategy), architecture, questions), note=note)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        reference = Reference(view, task.group_norm_eps, architecture=architecture)
        return replace(answer(reference, questions), note=note)


def _run(task: Task, strategy: str, architecture: Architecture, questions: Questions) -> Answers:
    with _named(task.artifact, ".pth") as path:
        return one_by_one(_step(path, strategy, architecture), questions, _torch_threads())


def _cannot_run(task: Task, strategy: str) -> str | None:
    """Why the package is not asked to run here what is for a GPU, None where it is."""
    torch = importlib.import_module("torch")
    try:
        one = torch.ones(1, dtype=torch.float16)
        torch.nn.functional.layer_norm(one @ one.view(1, 1), (1,), one, one)
    except RuntimeError:
        return f"PyTorch {torch.__version__} does not compute in fp16 without a GPU"
    size = task.artifact.stat().st_size
    # It works out matrices of bytes anew for every token.
    allowed = room() // (8 if any(stage.matrices == "u8" for stage in strategies.parse(strategy)) else 1)
    if size > allowed:
        return f"its {size >> 20} MiB are too many to be run without a GPU, in the memory that is free"
    return None


def _torch_threads() -> int:
    """How many threads PyTorch computes with."""
    return int(importlib.import_module("torch").get_num_threads())


def _compare_states(checkpoint: Checkpoint, artifact: Checkpoint) -> None:
    """Raises WorkerError unless the artifact has the checkpoint's initial states, in its own type."""
    for name in filter(is_state, checkpoint.tensors):
        info = artifact.tensors.get(name)
        wanted = checkpoint.float32(name)
        same = info is not None and np.array_equal(
            rounded(info.dtype, wanted), artifact.float32(name).reshape(wanted.shape)
        )
        if not same:
            raise WorkerError(f"{name} is not the checkpoint's in the artifact")


def _package(version: str) -> Any:
    """rwkv.model, which reads its environment once; anew where another version was loaded before."""
    wanted = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "1" if version == "7" else "0"}
    if "rwkv.model" in sys.modules and os.environ.get("RWKV_V7_ON") != wanted["RWKV_V7_ON"]:
        del sys.modules["rwkv.model"]
    os.environ.update(wanted)
    try:
        return importlib.import_module("rwkv.model")
    except ImportError as error:
        raise WorkerError(f"the rwkv package cannot be loaded: {error}") from None


@contextmanager
def _little_garbage() -> Iterator[None]:
    """The package looks for garbage after each tensor: let it not look through all that was there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _step(path: Path, strategy: str, architecture: Architecture) -> Callable[[int, Any], tuple[Any, Any]]:
    package = _package(architecture.version)
    try:
        with _opened_for(package, strategy), _little_garbage():
            model = package.RWKV(str(path.with_suffix("")), strategy)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        raise WorkerError(f"the rwkv package refused it: {type(error).__name__}: {error}") from None

    model.args.time_state = False  # the reference starts from nothing as well; the file's states were compared

    def step(token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
        logits, state = model.forward([token], state)
        return logits.float().numpy(), state

    return step


@contextmanager
def _opened_for(package: Any, strategy: str) -> Iterator[None]:
    """While the package opens a file: what it was written for is this strategy, that differs in the devices alone."""
    load = package.torch.load

    def opened(*arguments: Any, **options: Any) -> Any:
        found = load(*arguments, **options)
        if "_strategy" in found:
            found["_strategy"] = strategy
        return found

    package.torch.load = opened
    try:
        yield
    finally:
        package.torch.load = load


@contextmanager
def _named(path: Path, suffix: str) -> Iterator[Path]:
    """A link to a file under a name with this suffix, without which the package does not take it."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(path.resolve())
        yield link


# ---- what the package writes ----------------------------------------------------------------------------------


def _compare_with_package(
    task: Task, checkpoint: Checkpoint, artifact: Checkpoint, strategy: str, architecture: Architecture
) -> None:
    package = _package(architecture.version)
    scratch = Path("out") if Path("out").is_dir() else None  # a container's /tmp may be small
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source, target = Path(folder).resolve() / "source.pth", Path(folder).resolve() / "target.pth"
        _plain(checkpoint, source)
        try:
            with _little_garbage():
                package.RWKV(str(source), strategy, convert_and_save_and_exit=str(target))
        except SystemExit:
            pass
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise WorkerError(f"the rwkv package cannot convert it: {type(error).__name__}: {error}") from None
        with open_checkpoint(target) as theirs:
            compare_files(artifact, theirs, checkpoint.tensors["emb.weight"].dtype, architecture.version)


def _plain(checkpoint: Checkpoint, target: Path) -> None:
    """The checkpoint as the package reads it: a .pth whose names are the author's."""
    import torch

    if checkpoint.kind == "pth" and checkpoint.is_plain:
        keys: Any = ()
        with suppress(pickle.UnpicklingError):  # of other protocols than torch's own: this reader takes those, too
            keys = torch.load(checkpoint.path, map_location="cpu", mmap=True, weights_only=True)
        if list(keys) == list(checkpoint.tensors):
            target.symlink_to(checkpoint.path.resolve())
            return
    tensors = {}
    for name, info in checkpoint.tensors.items():
        values = torch.from_numpy(checkpoint.read(name).view(np.int16 if info.dtype == "bf16" else None))
        tensors[name] = values.view(torch.bfloat16) if info.dtype == "bf16" else values
    torch.save(tensors, target)


def compare_files(ours: Checkpoint, theirs: Checkpoint, dtype: str, version: str) -> None:
    """Raises WorkerError unless all is equal but for what a library computes that chooses its arithmetic by processor.

    That is the embedding of a checkpoint of `dtype`, and what went through exp: both are compared with bounds.
    """
    if dict(ours.metadata) != dict(theirs.metadata):
        raise WorkerError(f"the artifact says {dict(ours.metadata)}, the package writes {dict(theirs.metadata)}")
    here = {name.replace(".time_faaaa", ".time_first"): name for name in ours.tensors}  # see formats.chatrwkv
    if set(here) != set(theirs.tensors):
        odd = sorted(set(here) ^ set(theirs.tensors))
        raise WorkerError(f"the artifact and what the package writes differ in having {odd[0]!a}")
    for name, info in theirs.tensors.items():
        mine = ours.tensors[here[name]]
        if (mine.dtype, mine.shape) != (info.dtype, info.shape):
            raise WorkerError(
                f"{name} is {mine.dtype} {list(mine.shape)} in the artifact; "
                f"the package makes it {info.dtype} {list(info.shape)}"
            )
        if not _close(name, (ours.float32(here[name]), theirs.float32(name)), (dtype, info.dtype), version):
            raise WorkerError(f"{name} holds other values than what the rwkv package writes")


def _close(
    name: str, values: tuple[NDArray[np.float32], NDArray[np.float32]], dtypes: tuple[str, str], version: str
) -> bool:
    """Whether a tensor is what the package writes; `dtypes`: the checkpoint's embedding's, the tensor's in the file.

    Equal bits, or within the bound of the functions that the values went through. A NaN is close to nothing.
    """
    ours, theirs = values
    if np.array_equal(ours.view("<u4"), theirs.view("<u4")):
        return True
    size = np.abs(theirs.astype(np.float64))
    if name == "emb.weight":
        bound = sum(UNITS.get(dtype, UNITS["f32"]) for dtype in dtypes) * size + ROW_SUM
    elif name.endswith(".time_decay") and version == "4":  # -exp(x)
        bound = EXP_ERROR * size + SMALLEST_NORMAL
    elif name.endswith(".time_decay") and version.startswith("5"):
        # exp(-exp(x)): what the inner one is off, its result times as much, is a factor of the outer one.
        inner = -np.log(np.maximum(size, SMALLEST_NORMAL))
        bound = EXP_ERROR * (1.0 + np.abs(inner)) * size + SMALLEST_NORMAL
    elif name.endswith(".time_first") and version.startswith("5"):
        bound = EXP_ERROR * size + SMALLEST_NORMAL
    else:
        return False
    if dtypes[1] in ("f16", "bf16") and name != "emb.weight":
        bound = bound + UNITS[dtypes[1]] * size  # where one is just below the middle of two, and one just above
    return bool((np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) <= bound).all())


# ---- the artifact as a checkpoint -----------------------------------------------------------------------------


def _held(info: TensorInfo, architecture: Architecture, artifact: Checkpoint) -> Held:
    """Where a tensor of versions 4 to 6 stands in the artifact, and how its values come back."""
    name = chatrwkv.name_in_file(info.name, architecture)
    found = artifact.tensors[name]
    transposed = len(info.shape) == 2 and any(part in name for part in chatrwkv.MATRICES)
    factor = float(1 << chatrwkv.layer_of(name, architecture.n_layer) // RESCALE_EVERY)
    if "att.output.weight" not in name and "ffn.value.weight" not in name:
        factor = 1.0
    if artifact.metadata.get("_rescale_layer") == 0:
        factor = 1.0

    def back(values: NDArray[Any]) -> NDArray[Any]:
        if found.dtype == "u8":
            mx, rx, my, ry = (artifact.float32(f"{name}_{part}") for part in ("mx", "rx", "my", "ry"))
            values = (values + np.float32(0.5)) * ry * rx + my + mx
        if ".time_decay" in name and "_w" not in name and architecture.version != "6":
            values = np.log(-values) if architecture.version == "4" else np.log(-np.log(values))
        elif ".time_first" in info.name and architecture.version != "4":
            values = np.log(values)
        values = values.T if transposed else values
        return np.ascontiguousarray(values) * np.float32(factor)

    def quiet(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(divide="ignore"):
            return back(values)

    if name == "emb.weight":
        return Held(name, found.dtype, tuple(found.shape))
    return Held(name, found.dtype, tuple(found.shape), quiet, quiet)
