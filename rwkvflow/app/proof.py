"""Holds single files that librwkv runs against their checkpoint, as the smoke stage does, without a recipe."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base import machine
from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.base.text import bytes_text
from rwkvflow.documents.formats import runs_in_librwkv

if TYPE_CHECKING:
    from rwkvflow.worker.formats.mix import Mix
    from rwkvflow.worker.model.origin import Origin

TEXT = PACKAGE / "worker" / "data" / "smoke.txt"
TEXT_TOKENS = 128  # for the perplexity; a recipe's smoke stage reads more


@dataclass(frozen=True)
class Proof:
    """How far a file is from its checkpoint, what of it is over the format's limits, and what else is to be said."""

    format: str
    perplexity: float
    rise: float
    logits: float
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def provable(name: str, version: str = "") -> bool:
    """Whether files of a format, of a model of this version, can be proved with nothing else built or installed."""
    return runs_in_librwkv(name, version)


def need_memory(path: Path) -> None:
    """Raise EnvironmentMissing where the machine cannot hold a file in memory, before it is tried."""
    size, free = path.stat().st_size, machine.memory()
    if free is not None and size > free:
        raise EnvironmentMissing(
            f"running {path.name} to prove it takes {bytes_text(size)} of memory, {bytes_text(free)} are free",
            remedy="free some, or say --no-check",
        )


def prove(origin: Origin, library: Path, files: Sequence[tuple[str, Path]], mix: Mix | None = None) -> Iterator[Proof]:
    """Run each (format, file) with librwkv on the shipped text and compare it with the fp32 forward pass.

    `mix`: types of single tensors that files were given whose format takes some.
    The formats' own limits are held, which are those of a recipe that names none. Raises RwkvflowError for a
    checkpoint that is broken itself or a file that librwkv refuses.
    """
    import numpy as np

    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.runner import Task, answer, run_artifact
    from rwkvflow.worker.formats.runtimes import infinite_in
    from rwkvflow.worker.model.tokenizers import open_tokenizer
    from rwkvflow.worker.read.open import open_checkpoint
    from rwkvflow.worker.reference import Reference as Forward
    from rwkvflow.worker.smoke import judge
    from rwkvflow.worker.smoke.questions import Questions

    try:
        with open_checkpoint(origin) as checkpoint:
            forward = Forward(checkpoint, None)
            tokenizer = open_tokenizer("auto", forward.architecture.n_vocab, None)
            tokens = tokenizer.encode(TEXT.read_text(encoding="utf-8")[: 64 * TEXT_TOKENS])[:TEXT_TOKENS]
            questions = Questions(tuple(tokens), min(len(tokens), 64), (), 0)
            with _quiet(), np.errstate(over="ignore", invalid="ignore"):  # judged below
                truth = answer(forward, questions)
        if trouble := judge.finite(truth):
            raise RwkvflowError(f"the checkpoint itself is broken: in fp32, {trouble}")
        for name, path in files:
            item = FORMATS[name]
            item = replace(item, runner=item.quick_runner or item.runner, mix=mix if item.mixes else None)
            with _quiet():
                answers = run_artifact(Task(path, origin, library, None, item), questions)
            if trouble := judge.finite(answers):
                yield Proof(name, float("nan"), float("nan"), float("nan"), (trouble,))
                continue
            figures = judge.compare(truth, answers)
            limits = {"logits": FORMATS[name].limits.logits, "perplexity": FORMATS[name].limits.perplexity}
            found = tuple(judge.problems(name, figures, limits))
            not_for = infinite_in(item, forward.architecture.n_ffn, forward.peaks.square, forward.peaks.block)
            remarks = tuple(f"not for {runtime}: {why}" for runtime, why in not_for.items())
            yield Proof(name, figures.perplexity, figures.rise, figures.logits, found, remarks)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error


def _quiet() -> redirect_stdout[io.StringIO]:
    """Keeps the worker's messages, which nobody reads here, off standard output."""
    return redirect_stdout(io.StringIO())
