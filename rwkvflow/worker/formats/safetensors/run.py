"""`safetensors-f16`, `-f32`: read by PyPI's safetensors, compared with the checkpoint, and run in fp32."""

from __future__ import annotations

from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.checkpoint import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.consumers import SafetensorsFile, Task, answer
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held
from rwkvflow.worker.smoke.questions import Answers, Questions

FLOATS = ("f64", "f32", "f16", "bf16")


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError unless every tensor is the checkpoint's, rounded to the format's type."""
    dtype = task.format.rpartition("-")[2]
    with open_checkpoint(task.checkpoint) as checkpoint, SafetensorsFile(task.artifact) as artifact:
        wanted = {
            name: Held(name, dtype if info.dtype in FLOATS else info.dtype, tuple(info.shape))
            for name, info in checkpoint.tensors.items()
        }
        compare_held(checkpoint, artifact, wanted)
        architecture = architecture_of(checkpoint.tensors)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        return answer(Reference(view, task.group_norm_eps, architecture=architecture), questions)
