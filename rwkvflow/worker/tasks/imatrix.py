"""Task `imatrix`: how much each column of a model's matrices counts over a text; the same bytes on every machine.

Inputs: in/checkpoint with in/lora and in/state (see origin), in/engine (librwkv), in/text (UTF-8), in/tokenizer where
the recipe names one. Parameters: see ImatrixParams. One job with the output "imatrix".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.importance import Gatherer, chunks_of
from rwkvflow.worker.conversion.opened import opened_as
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.imatrix import imatrix_bytes, of_sums
from rwkvflow.worker.model.origin import origin_of, tokenizer_of
from rwkvflow.worker.model.tokenizers import open_tokenizer
from rwkvflow.worker.protocol import emit, progress
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import ImatrixRequest

FORM = "ggml-f16"  # what the model is run as: that of users' files


def run(request: ImatrixRequest) -> None:
    """Write the matrix. Raises WorkerError for a text without a whole chunk, and a model without GGUF."""
    params, job = request["params"], request["jobs"][0]
    size, eps = params["chunk_size"], params["group_norm_eps"]
    output = Path(job["outputs"]["imatrix"])
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened_as(FORM, origin_of(Path("in"), params), Path("in/engine"), eps) as model:
            kind = params["tokenizer"]
            words = open_tokenizer(kind, model.n_vocab, tokenizer_of(Path("in"), kind))
            tokens = words.encode(Path("in/text").read_bytes().decode("utf-8", "replace"))
            parts = list(chunks_of(tokens, size, params["chunks"]))
            if not parts:
                raise WorkerError(
                    f"{params['text']} has {len(tokens)} tokens, fewer than a chunk of {size}: "
                    "name a longer one, or a smaller chunk_size"
                )
            found = Gatherer(model)
            for done, part in enumerate(parts):
                progress(done, len(parts), "chunks")
                found.add(part)
            matrix = of_sums(model.version or "", found.sums(), len(parts) * size, [params["text"]], size)
    except EngineError as error:
        raise WorkerError(f"the engine refused it: {error}") from None
    if not matrix.sums:
        raise WorkerError("this version has no GGUF files, and nothing else is made with an importance matrix")
    output.write_bytes(imatrix_bytes(matrix))
    progress(len(parts), len(parts), "chunks")
    emit(note={"job": job["id"], "key": "importance", "value": f"{len(matrix.sums)} matrices, {len(parts)} chunks"})
    finish(job["id"], "imatrix", output)
