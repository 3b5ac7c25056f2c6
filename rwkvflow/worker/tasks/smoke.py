"""Task "smoke": what each artifact answered (see the task "ask") is compared with the reference.

Nothing of a recipe's runs here. Inputs: in/reference, in/checkpoint with in/lora and in/state (see origin), in/engine
(librwkv), in/tokenizer where the recipe names one, and in/answers-<format> of each job; of formats that `may_be_equal`
the artifact as well, which is read and not run. Job parameters: format, input (the artifact's name below in/) and
limits {"logits", "perplexity"}, where absent the format's own. Parameters: prompts, lora_alpha. Output "smoke": the
report; it is written for a failed artifact as well, whose job then fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import BOUNDED, RUN
from rwkvflow.worker.formats.equal import are_equal
from rwkvflow.worker.formats.runtimes import infinite_in
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.tokenizers import ModelTokenizer, open_tokenizer
from rwkvflow.worker.protocol import about, emit, progress
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Answers, SmokeReference, read_reference
from rwkvflow.worker.smoke.told import read_told
from rwkvflow.worker.tasks.given import given_mix
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import AskParams, MixParams, SmokeJobRequest, SmokeRequest

REFERENCE = Path("in/reference")


def run(request: SmokeRequest) -> None:
    """Run and judge every artifact of the request.

    Raises WorkerError when the reference cannot be used; an artifact's trouble is its own.
    """
    reference = read_reference(REFERENCE)
    kind = reference.tokenizer
    tokenizer = open_tokenizer(kind, reference.answers.logits.shape[1], tokenizer_of(Path("in"), kind))
    jobs = request["jobs"]
    stored = _stored({job["params"]["format"]: job["params"].get("mix") for job in jobs}, request["params"])
    for done, job in enumerate(jobs):
        name = job["params"]["format"]
        about(job["id"])
        progress(done, len(jobs), "artifacts", name)
        try:
            answers, asked = _told(job, reference, request["params"])
        except WorkerError as error:
            emit(failed={"job": job["id"], "message": f"{name}: {error}"})
            continue
        if failure := _judge(job, (reference, asked), answers, request["params"], tokenizer, stored[name]):
            emit(failed={"job": job["id"], "message": failure})
    about(None)
    progress(len(jobs), len(jobs), "artifacts")


def _told(job: SmokeJobRequest, reference: SmokeReference, params: AskParams) -> tuple[Answers, SmokeReference]:
    """The answers, and the reference as far as they go: see formats.equal. Raises WorkerError."""
    name = job["params"]["format"]
    told, artifact = Path("in") / f"answers-{name}", Path("in") / job["params"]["input"]
    if FORMATS[name].may_be_equal and are_equal(origin_of(Path("in"), params), FORMATS[name], artifact):
        brief = reference.of_equal()
        with suppress(WorkerError):  # it was asked all
            return read_told(told, brief), brief
    return read_told(told, reference), reference


def _judge(
    job: SmokeJobRequest,
    references: tuple[SmokeReference, SmokeReference],
    answers: Answers,
    params: AskParams,
    tokenizer: ModelTokenizer,
    stored: judge.Stored,
) -> str | None:
    """Writes the report; returns what is wrong with the artifact. `references`: the whole, and as far as was asked."""
    name = job["params"]["format"]
    item, (reference, asked) = FORMATS[name], references
    if trouble := judge.shape_problem(reference.answers, answers) or judge.finite(answers):
        return "; ".join([f"{name}: {trouble}", *(judge.overflow(name, reference) if item.half else ())])
    own, usual = job["params"].get("limits"), item.limits
    limits = {
        "logits": (own and own.get("logits")) or usual.logits,
        "perplexity": (own and own.get("perplexity")) or usual.perplexity,
    }
    figures = judge.compare(asked.answers, answers)
    failed = judge.problems(name, figures, limits)
    if asked is not reference:
        failed += judge.of_equal_problems(item.consumer, figures)
        figures = judge.of_equal(reference, figures)
        note = judge.EQUAL.format(consumer=item.consumer, tokens=len(asked.questions.text))
        same = reference.answers.continuations
        answers = replace(answers, continuations=same, runtime=False, note=note)
    if item.half == BOUNDED or (item.half == RUN and not answers.runtime):
        failed += judge.overflow(name, reference)
        answers = replace(answers, note="; ".join(filter(None, (answers.note, judge.TYPES_ONLY))))
    # A runtime that ran the file itself has shown what it does.
    mixed = replace(item, mix=given_mix(name, job["params"].get("mix")))
    found = infinite_in(mixed, reference.n_ffn, reference.square, reference.block)
    not_for = {one: why for one, why in found.items() if one != item.consumer}
    texts = [tokenizer.decode(tokens) for tokens in answers.continuations]
    continuations = list(zip(params["prompts"], texts, strict=True))
    content = judge.report(
        name, item.consumer, reference, answers, figures, stored, limits, continuations, failed, not_for
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
        *(("warning", f"not for {one}: {why}") for one, why in not_for.items()),
    ):
        emit(note={"job": job["id"], "key": key, "value": value})
    if failed:
        return f"{name}: " + "; ".join(failed)
    finish(job["id"], "smoke", output)
    return None


def _stored(names: dict[str, MixParams | None], params: AskParams) -> dict[str, judge.Stored]:
    """How each format keeps the weights, from a process that may load the engine. Raises WorkerError."""
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "rwkvflow.worker.tasks.stored", json.dumps({"formats": names, "params": params})]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=False)
    try:
        rows = json.loads(done.stdout) if done.returncode == 0 else {}
        return {name: judge.Stored(int(rows[name][0]), int(rows[name][1])) for name in names}
    except (ValueError, KeyError, TypeError, IndexError):
        raise WorkerError("the sizes of the formats could not be reckoned; the log above says more") from None
