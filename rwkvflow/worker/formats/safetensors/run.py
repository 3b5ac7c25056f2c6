"""`safetensors`, `-f16`, `-f32`: read by PyPI's safetensors, compared with the checkpoint, and run in fp32."""

from __future__ import annotations

from rwkvflow.worker.formats.equal import as_it_is, can_be_equal
from rwkvflow.worker.formats.runner import Task, answer
from rwkvflow.worker.formats.safetensors.layout import Safetensors
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held
from rwkvflow.worker.smoke.questions import Answers, Questions
from rwkvflow.worker.smoke.safetensors_reader import SafetensorsFile, compare_tensors

FLOATS = ("f64", "f32", "f16", "bf16")


def run(task: Task, questions: Questions) -> Answers:
    """Raises WorkerError unless every tensor is the checkpoint's, rounded where the format says a type."""
    exact = can_be_equal(task.checkpoint, task.format)
    dtype = task.format.dtype if isinstance(task.format, Safetensors) else None
    with task.open_source() as checkpoint, SafetensorsFile(task.artifact) as artifact:
        if dtype is None:
            compare_tensors(checkpoint, artifact)
            questions = questions.of_equal() if exact else questions
            return answer(Reference(artifact, task.group_norm_eps), questions)
        wanted = {
            name: Held(name, dtype if info.dtype in FLOATS else info.dtype, tuple(info.shape))
            for name, info in checkpoint.tensors.items()
        }
        compare_held(checkpoint, artifact, wanted)
        architecture = architecture_of(checkpoint.tensors)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        if exact and as_it_is(checkpoint.tensors, wanted):
            questions = questions.of_equal()
        return answer(Reference(view, task.group_norm_eps, architecture=architecture), questions)
