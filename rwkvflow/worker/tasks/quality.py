"""Task `quality`: how far artifacts are from their model over texts of several domains, and what they get right.

The reference is the checkpoint in F32, run by librwkv as the artifacts are. Inputs: in/checkpoint with in/lora and
in/state (see origin), in/engine (librwkv), in/tokenizer where the recipe names one, and the artifacts. Parameters: see
QualityParams; those of a job: format, input (the artifact's name below in/), and limits by domain. Output "quality" of
each job; it is written for one that is over a limit as well, whose job then fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.worker.conversion.patched import PatchedFile, in_f32, layer_of, tensors_of
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import threads_for
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.tokenizers import ModelTokenizer, PseudoRandom, open_tokenizer
from rwkvflow.worker.protocol import about, emit, progress
from rwkvflow.worker.smoke.domain_names import DOMAINS
from rwkvflow.worker.smoke.domains import FOLDER, answer_tasks, compare_on, figures, over
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import QualityJobRequest, QualityRequest

LAYER_TOKENS = 64  # of each domain, for the loss by layer


def run(request: QualityRequest) -> None:
    """See the module. Raises WorkerError where the model itself cannot be run; an artifact's trouble is its own."""
    params, jobs = request["params"], request["jobs"]
    origin, eps = origin_of(Path("in"), params), params["group_norm_eps"]
    families: dict[str, list[QualityJobRequest]] = {}
    for job in jobs:
        families.setdefault(FORMATS[job["params"]["format"]].family, []).append(job)
    for family, some in families.items():
        with in_f32(family, origin, Path("in/engine"), eps) as (base, reference):
            words = open_tokenizer(
                params["tokenizer"], reference.n_vocab, tokenizer_of(Path("in"), params["tokenizer"])
            )
            _measure(base, reference, words, params["tokens"], some)
    about(None)


def _measure(
    base: PatchedFile, reference: Model, words: ModelTokenizer, count: int, jobs: Sequence[QualityJobRequest]
) -> None:
    texts: dict[str, list[int]] = {
        name: words.encode((FOLDER / f"{name}.txt").read_text(encoding="utf-8"))[:count] for name in DOMAINS
    }
    told: dict[str, Any] = {} if isinstance(words, PseudoRandom) else answer_tasks(reference, words)
    for done, job in enumerate(jobs):
        about(job["id"])
        progress(done, len(jobs), "artifacts", job["params"]["format"])
        try:
            _one(base, reference, words, texts, told, job)
        except (WorkerError, EngineError) as error:
            emit(failed={"job": job["id"], "message": f"{job['params']['format']}: {error}"})
    progress(len(jobs), len(jobs), "artifacts")


def _one(
    base: PatchedFile,
    reference: Model,
    words: ModelTokenizer,
    texts: Mapping[str, Sequence[int]],
    told: Mapping[str, Any],
    job: QualityJobRequest,
) -> None:
    params, path = job["params"], Path("in") / job["params"]["input"]
    with Model(path, base.library, threads_for(path.stat().st_size), base.eps) as model:
        domains = {}
        for name, tokens in texts.items():
            (found,) = compare_on(tokens, reference, [model])
            domains[name] = figures(found)
        answered = answer_tasks(model, words) if told else {}
    tasks = {name: {**share, "reference": told[name]["right"]} for name, share in answered.items()}
    problems = [text for name, limits in params.get("limits", {}).items() for text in over(name, domains[name], limits)]
    content = {
        "format": params["format"],
        "evaluated": "librwkv",
        "domains": domains,
        "tasks": tasks,
        "layers": _by_layer(base, reference, path, {name: tokens[:LAYER_TOKENS] for name, tokens in texts.items()}),
        "problems": problems,
        "passed": not problems,
    }
    output = Path(job["outputs"]["quality"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, one in domains.items():
        emit(note={"job": job["id"], "key": f"KL divergence, {name}", "value": f"{one['kl']:g}"})
    if problems:
        emit(failed={"job": job["id"], "message": f"{params['format']}: {'; '.join(problems)}"})
    else:
        finish(job["id"], "quality", output)


def _by_layer(
    base: PatchedFile, reference: Model, path: Path, texts: Mapping[str, Sequence[int]]
) -> list[float] | None:
    """KL divergence where a layer alone has the artifact's values; None for types whose values are not told here."""
    tensors = tensors_of(path)
    layers: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        layer = layer_of(name)
        if layer is not None and name in base.tensors and tensor.type != "f32":
            layers.setdefault(layer, []).append(name)
    found = []
    for layer in range(reference.n_layer):
        try:
            with ExitStack() as stack:
                model = stack.enter_context(base.with_values(layers.get(layer, ()), path, tensors))
                parts = [compare_on(tokens, reference, [model])[0].divergence for tokens in texts.values()]
        except WorkerError:
            return None
        found.append(float(f"{round(float(np.concatenate(parts).mean()), 7):.3g}"))
    return found
