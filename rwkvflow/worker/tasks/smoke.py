"""Task "smoke": each artifact is run by its consumer and compared with the reference.

Inputs: in/reference, in/checkpoint with in/lora and in/state (see origin), in/engine, in/tokenizer where the recipe
names one, and the artifacts. Job parameters: format, input (the artifact's name below in/) and limits {"logits",
"perplexity"}, where absent the format's own. Parameters: prompts, lora_alpha, and speed, whether tokens are timed.
Output "smoke": the report; it is written for a failed artifact as well, whose job then fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.tokenizers import Tokenizer, open_tokenizer
from rwkvflow.worker.protocol import emit, progress
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Answers, Reference, read_answers, read_reference
from rwkvflow.worker.tasks.outputs import finish

REFERENCE = Path("in/reference")
CONSUMERS = "rwkvflow.worker.tasks.consume"  # the module that runs artifacts in a process of its own


def run(request: dict[str, Any]) -> None:
    """See the module. Raises WorkerError when the reference cannot be used; an artifact's trouble is its own."""
    reference = read_reference(REFERENCE)
    kind = reference.tokenizer
    tokenizer = open_tokenizer(kind, reference.answers.logits.shape[1], tokenizer_of(Path("in"), kind))
    jobs = request["jobs"]
    for done, (job, result) in enumerate(_answers(jobs, reference, request["params"])):
        progress(done, len(jobs), "artifacts", job["params"]["format"])
        failure = result if isinstance(result, str) else _judge(job, reference, result, request["params"], tokenizer)
        if failure:
            emit(failed={"job": job["id"], "message": failure})
    progress(len(jobs), len(jobs), "artifacts")


def _answers(
    jobs: list[dict[str, Any]], reference: Reference, params: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Answers | str]]:
    """Each job with its artifact's answers or a message, in order."""
    Path("out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="out", prefix=".smoke-") as folder:
        waiting = list(enumerate(jobs))
        while waiting:
            paths = {index: Path(folder) / f"{index}.npz" for index, _ in waiting}
            code = _child(Path(folder) / "order.json", [(job, paths[i]) for i, job in waiting], reference, params)
            while waiting:
                index, job = waiting[0]
                answers, error = paths[index], paths[index].with_suffix(".error")
                if answers.exists():
                    try:
                        yield job, read_answers(answers)
                    except WorkerError as damaged:
                        yield job, str(damaged)
                    answers.unlink()
                elif error.exists():
                    yield job, error.read_text(encoding="utf-8")
                else:  # it ended the process, so start another with the next
                    yield job, _ending(job["params"]["format"], code)
                    waiting.pop(0)
                    break
                waiting.pop(0)


def _child(
    order: Path, entries: list[tuple[dict[str, Any], Path]], reference: Reference, params: dict[str, Any]
) -> int:
    content = {
        "reference": str(REFERENCE),
        "checkpoint": "in/checkpoint",
        "lora_alpha": params.get("lora_alpha"),
        "engine": "in/engine",
        "group_norm_eps": reference.group_norm_eps,
        "speed": bool(params.get("speed")),
        "artifacts": [
            {
                "format": job["params"]["format"],
                "artifact": f"in/{job['params']['input']}",
                "answers": str(answers),
            }
            for job, answers in entries
        ],
    }
    order.write_text(json.dumps(content), encoding="utf-8")
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", CONSUMERS, str(order)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


def _ending(name: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"running {name} was killed: most likely it needed more memory than the step's limit"
    if code < 0:
        try:
            text = signal.Signals(-code).name
        except ValueError:
            text = f"signal {-code}"
        return f"running {name} crashed ({text})"
    return f"running {name} ended with exit code {code} and without a result; the log above says more"


def _judge(
    job: dict[str, Any], reference: Reference, answers: Answers, params: dict[str, Any], tokenizer: Tokenizer
) -> str | None:
    """Writes the report; returns what is wrong with the artifact."""
    name = job["params"]["format"]
    if trouble := judge.shape_problem(reference.answers, answers) or judge.finite(answers):
        return f"{name}: {trouble}"
    own = job["params"].get("limits") or {}
    limits = {key: own.get(key) or getattr(FORMATS[name].limits, key) for key in ("logits", "perplexity")}
    figures = judge.compare(reference.answers, answers)
    failed = judge.problems(name, figures, limits)
    texts = [tokenizer.decode(tokens) for tokens in answers.continuations]
    continuations = list(zip(params["prompts"], texts, strict=True))
    content = judge.report(
        name, FORMATS[name].consumer, reference, answers, figures, _stored(name, params), limits, continuations, failed
    )
    output = Path(job["outputs"]["smoke"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    for key, value in (
        ("perplexity", f"{figures.perplexity:.3f}"),
        ("perplexity rise", f"{judge.coarse(figures.rise):+.2%}"),
        ("worst logit", f"{judge.coarse(figures.logits):.4g}"),
        *((("KL divergence", f"{judge.small(figures.divergence):g}"),) if figures.divergence is not None else ()),
        *((("tokens a second", f"{answers.pace.tokens_per_second:.3g}"),) if answers.pace else ()),
        *(("continuation", prompt + text) for prompt, text in continuations),
        *((("proof", answers.note),) if answers.note else ()),
    ):
        emit(note={"job": job["id"], "key": key, "value": value})
    if failed:
        return f"{name}: " + "; ".join(failed)
    finish(job["id"], "smoke", output)
    return None


def _stored(name: str, params: dict[str, Any]) -> judge.Stored:
    """What the layout of such a file gives the checkpoint's tensors; nothing is written but empty files."""
    item, origin = FORMATS[name], origin_of(Path("in"), params)
    with open_checkpoint(origin) as checkpoint, tempfile.TemporaryDirectory(prefix=".layout-") as folder:
        architecture = architecture_of(checkpoint.tensors)
        held = item.held(architecture, checkpoint.tensors)
        writer = item.open(Path(folder) / "empty", architecture, held, Path("in/engine"))
        try:
            taken = sum(slot.size for slots in writer.slots.values() for slot in slots)
        finally:
            writer.abort()
        return judge.Stored(sum(info.numel for info in held.values()), taken)
