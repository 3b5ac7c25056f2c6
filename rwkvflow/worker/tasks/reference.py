"""Task "reference": the fp32 truth of a model, from its checkpoint.

Inputs: in/checkpoint with in/lora and in/state (see origin), in/text (UTF-8), in/tokenizer where the recipe names one.
Parameters: prompts, tokens, tokenizer, group_norm_eps, lora_alpha, and optionally text_tokens and logit_tokens. One job
with the outputs "reference" and "questions", which is what of it an artifact may know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.model.tokenizers import ModelTokenizer, open_tokenizer
from rwkvflow.worker.protocol import emit
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import (
    LOGIT_TOKENS,
    TEXT_TOKENS,
    TRUTH_BYTES,
    Questions,
    SmokeReference,
    write_questions,
    write_reference,
)
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import AskParams, ReferenceRequest

READ_BYTES = 256e9  # bytes of weights that the greedy continuations may read: 9 tokens of a 14B model


def run(request: ReferenceRequest) -> None:
    """Compute the answers of the checkpoint and write them to out/. Raises WorkerError."""
    params, job = request["params"], request["jobs"][0]
    with open_checkpoint(origin_of(Path("in"), params)) as checkpoint:
        forward = Reference(checkpoint, params.get("group_norm_eps"))
        refuse_unknown(checkpoint.tensors, forward.architecture)
        tokenizer = _tokenizer(params["tokenizer"], forward.architecture.n_vocab)
        questions = ask(params, _text(Path("in/text")), tokenizer, forward.architecture.n_vocab)
        nbytes = sum(info.nbytes for info in checkpoint.tensors.values())
        affordable = max(1, int(READ_BYTES // max(nbytes, 1)))
        shortened = min(questions.tokens, affordable)
        with np.errstate(over="ignore", invalid="ignore"):  # judged below
            kept = max(questions.logits, TRUTH_BYTES // (4 * forward.architecture.n_vocab))
            answers = answer(forward, replace(questions, logits=kept, tokens=shortened))
    if trouble := judge.finite(answers):
        raise WorkerError(f"the checkpoint itself is broken: in fp32, {trouble}")
    output = Path(job["outputs"]["reference"])
    output.parent.mkdir(parents=True, exist_ok=True)
    told = (params.get("group_norm_eps"), params["tokenizer"], tokenizer.note)
    peaks = (forward.peaks.square, forward.peaks.residual, forward.peaks.block)
    reference = SmokeReference(questions, answers, *told, *peaks, n_ffn=forward.architecture.n_ffn)
    write_reference(output, reference)
    if tokenizer.note:
        emit(note={"job": job["id"], "key": "tokenizer", "value": tokenizer.note})
    emit(note={"job": job["id"], "key": "perplexity", "value": f"{answers.perplexity:.3f}"})
    for prompt, tokens in zip(params["prompts"], answers.continuations, strict=True):
        emit(note={"job": job["id"], "key": "continuation", "value": prompt + tokenizer.decode(tokens)})
    finish(job["id"], "reference", output)
    if place := job["outputs"].get("questions"):
        write_questions(Path(place), reference)
        finish(job["id"], "questions", Path(place))


def ask(params: AskParams, text: str, tokenizer: ModelTokenizer, n_vocab: int) -> Questions:
    """The questions in tokens to a model of `n_vocab`. Raises WorkerError for a text of less than two tokens."""
    limit = params.get("text_tokens") or TEXT_TOKENS
    tokens = tokenizer.encode(text[: 64 * limit])[:limit]  # tokens are shorter than 64 characters on average
    if len(tokens) < 2:
        raise WorkerError("the smoke text has less than two tokens: name a longer one in the recipe's `smoke.text`")
    prompts = tuple(tuple(tokenizer.encode(prompt)) or (0,) for prompt in params["prompts"])
    count = min(len(tokens), params.get("logit_tokens") or LOGIT_TOKENS)
    ids = frozenset(tokenizer.ids) | {0}  # which ends a text
    nameless = tuple(token for token in range(n_vocab) if token not in ids)
    return Questions(tuple(tokens), count, prompts, params["tokens"], nameless=nameless)


def _tokenizer(kind: str, n_vocab: int) -> ModelTokenizer:
    return open_tokenizer(kind, n_vocab, tokenizer_of(Path("in"), kind))


def _text(path: Path) -> str:
    try:
        # More than any number of tokens that is evaluated can cover.
        with path.open("rb") as opened:
            return opened.read(1 << 20).decode("utf-8", errors="strict" if path.stat().st_size <= 1 << 20 else "ignore")
    except UnicodeDecodeError as error:
        raise WorkerError(f"the smoke text is not UTF-8 (byte {error.start})") from None
