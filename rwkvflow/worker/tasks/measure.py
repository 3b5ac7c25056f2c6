"""Task `measure`: what each matrix of a model loses, alone, where it is quantized to one type.

Each in turn holds what a file of that type makes of it, the rest is F32; the figure is the KL divergence of the logits
from those of F32, over windows of texts that are spread over them: one figure for each of the domains' texts (see
smoke/domains), or, where the recipe names a calibration text of its own, for that. Inputs: in/checkpoint with in/lora
and in/state (see origin), in/engine (librwkv), in/text (UTF-8) where the recipe names one, in/tokenizer where it names
one, in/imatrix where files are made with one. Parameters: see MeasureParams. One job with the output "losses".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.worker.conversion.convert import ConversionJob
from rwkvflow.worker.conversion.opened import converted
from rwkvflow.worker.conversion.patched import PatchedFile, in_f32, tensors_of
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
from rwkvflow.worker.formats.mix import mix_of
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.tokenizers import ModelTokenizer, open_tokenizer
from rwkvflow.worker.model.weight_types import BY_NAME
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.smoke.domain_names import DOMAINS
from rwkvflow.worker.smoke.domains import SEARCH
from rwkvflow.worker.smoke.questions import Array
from rwkvflow.worker.smoke.scores import Softmax, divergence_of, softmax_of
from rwkvflow.worker.tasks.convert import IMATRIX
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import MeasureRequest

FORM = "gguf-q4_k_m-mixed"  # made from F16, as users' files are; all its types are given
WINDOW = 128  # tokens, each window from a fresh state
TOGETHER = 4  # windows that are read at once

Windows = list[Sequence[int]]


def run(request: MeasureRequest) -> None:
    """Write the losses. Raises WorkerError."""
    params, job = request["params"], request["jobs"][0]
    origin, eps, kind = origin_of(Path("in"), params), params["group_norm_eps"], params["kind"]
    output = Path(job["outputs"]["losses"])
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = read_imatrix(IMATRIX) if IMATRIX.is_file() else None
    try:
        with in_f32("gguf", origin, Path("in/engine"), eps) as (base, reference):
            words = open_tokenizer(
                params["tokenizer"], reference.n_vocab, tokenizer_of(Path("in"), params["tokenizer"])
            )
            windows = _windows(words, params["tokens"])
            truth = {name: [softmax_of(rows) for rows in _logits(reference, some)] for name, some in windows.items()}
            order = ConversionJob("x", FORM, Path("quantized"), imatrix=weights, mix=mix_of([("", kind)]))
            with converted(order, origin, Path("in/engine"), eps) as path:
                found = _alone(base, path, truth, windows)
    except EngineError as error:
        raise WorkerError(f"the engine refused it: {error}") from None
    content = {"kind": kind, "tokens": WINDOW * sum(map(len, windows.values())), "matrices": found}
    output.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    finish(job["id"], "losses", output)


def _alone(
    base: PatchedFile, path: Path, truth: Mapping[str, Sequence[Softmax]], windows: Mapping[str, Windows]
) -> dict[str, dict[str, Any]]:
    """What each matrix loses where it alone holds what the file at `path` has."""
    tensors = tensors_of(path)
    names = [name for name, tensor in tensors.items() if BY_NAME[tensor.type].is_quantized]
    found: dict[str, dict[str, Any]] = {}
    for done, name in enumerate(names):
        progress(done, len(names), "matrices", name)
        with base.with_values([name], path, tensors) as model:
            losses = {text: _loss(truth[text], model, some) for text, some in windows.items()}
        tensor = tensors[name]
        found[name] = {
            "losses": {text: float(f"{loss:.6g}") for text, loss in losses.items()},
            "type": tensor.type,
            "bytes": tensor.nbytes,
            "values": math.prod(tensor.shape),
        }
    return found


def _windows(words: ModelTokenizer, count: int) -> dict[str, Windows]:
    """About `count` tokens of all texts together. Raises WorkerError for a text of less than a window."""
    own = Path("in/text")
    if own.is_file():
        return {"text": spread(words.encode(own.read_bytes().decode("utf-8", "replace")), count)}
    texts = {name: (SEARCH / f"{name}.txt").read_text(encoding="utf-8") for name in DOMAINS}
    return {name: spread(words.encode(text), count // len(texts)) for name, text in texts.items()}


def spread(tokens: Sequence[int], count: int) -> Windows:
    """About `count` tokens in windows that lie evenly over a text. Raises WorkerError for less than a window."""
    most = len(tokens) // WINDOW
    if not most:
        raise WorkerError(f"the text has {len(tokens)} tokens, fewer than {WINDOW}: name a longer one")
    wanted = min(most, max(1, count // WINDOW))
    starts = [index * most // wanted * WINDOW for index in range(wanted)]
    return [tokens[start : start + WINDOW] for start in starts]


def _logits(model: Model, windows: Windows) -> list[Array]:
    out = []
    for start in range(0, len(windows), TOGETHER):
        some = windows[start : start + TOGETHER]
        count = sum(map(len, some))
        out.append(model.eval_sequences(some, [None] * len(some), [None] * count, range(count))[0])
    return out


def _loss(truth: Sequence[Softmax], model: Model, windows: Windows) -> float:
    with np.errstate(all="ignore"):
        rows = [divergence_of(t, softmax_of(rows)) for t, rows in zip(truth, _logits(model, windows), strict=True)]
    loss = float(np.concatenate(rows).mean())
    return loss if math.isfinite(loss) else 1e9  # a type that breaks the model is never chosen
