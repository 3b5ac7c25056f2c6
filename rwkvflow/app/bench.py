"""How fast libraries run models: in turns, each time in a process of its own, so that none profits from another."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvflow.base import process
from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.shipped import PACKAGE

EMBEDDING = "emb.weight"


@dataclass
class Measured:
    """One model in one library. In seconds, bytes, and tokens per second."""

    model: Path
    library: Path
    kind: str  # Q8_0
    size: int
    weights: int  # bytes that one token reads: all but the embedding, of which it is one row
    load: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)  # of `prompt` tokens
    prompt: int = 0
    peak: int | None = None
    system: str = ""

    @property
    def token(self) -> float:
        """Seconds a token: the median."""
        return statistics.median(self.decode)

    @property
    def prompt_rate(self) -> float | None:
        """Tokens a second of a prompt: the median."""
        return self.prompt / statistics.median(self.prefill) if self.prefill else None

    def share(self, bandwidth: float) -> float:
        """Which part of the machine's read bandwidth the weights alone take."""
        return self.weights / self.token / bandwidth

    def as_json(self, bandwidth: float) -> dict[str, Any]:
        """Everything, with plain numbers."""
        return {
            "model": str(self.model),
            "library": str(self.library),
            "system": self.system,
            "type": self.kind,
            "bytes": self.size,
            "bytes_a_token": self.weights,
            "load_s": statistics.median(self.load),
            "ms_a_token": self.token * 1e3,
            "ms_a_token_best": min(self.decode) * 1e3,
            "tokens_a_second": 1 / self.token,
            "prompt_tokens": self.prompt,
            "prompt_tokens_a_second": self.prompt_rate,
            "peak_bytes": self.peak,
            "bandwidth_share": self.share(bandwidth),
        }


@dataclass(frozen=True)
class BenchPlan:
    """What to measure. `libraries`: ours first, then the one it is compared with."""

    models: Sequence[Path]
    libraries: Sequence[Path]
    threads: int
    tokens: int = 64
    prompt: int = 256
    rounds: int = 3
    eps: float | None = None


def measure(plan: BenchPlan, tell: Callable[[str], None] = lambda text: None) -> list[Measured]:
    """A row for each model and library, libraries of one model next to each other. Raises RwkvflowError."""
    rows: list[Measured] = []
    for model in plan.models:
        pair = [_row(model, library, plan) for library in plan.libraries]
        for number in range(plan.rounds):
            # Whoever comes first in a round finds the machine colder.
            for row in pair if number % 2 == 0 else reversed(pair):
                tell(f"{model.name}, {row.library.name}, round {number + 1} of {plan.rounds}")
                _add(row, plan)
        rows += pair
    return rows


def bandwidth(threads: int) -> float:
    """Bytes a second that this machine reads from memory with so many threads."""
    return float(_child({"task": "bandwidth", "threads": threads})["bytes_per_second"])


def _row(model: Path, library: Path, plan: BenchPlan) -> Measured:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.ggml_file import read_ggml_index

    try:
        index = read_ggml_index(model)
    except WorkerError as error:
        raise RwkvflowError(f"{model}: {error}", remedy="only ggml-* files can be measured") from error
    weights = sum(tensor.nbytes for name, tensor in index.tensors.items() if name != EMBEDDING)
    return Measured(model, library, index.type.upper(), model.stat().st_size, weights, prompt=plan.prompt)


def _add(row: Measured, plan: BenchPlan) -> None:
    answer = _child(
        {
            "task": "model",
            "library": str(row.library.resolve()),
            "model": str(row.model.resolve()),
            "threads": plan.threads,
            "eps": plan.eps,
            "tokens": plan.tokens,
            "prompt": plan.prompt,
        }
    )
    row.load.append(answer["load"])
    row.decode += answer["decode"]
    if "prefill" in answer:
        row.prefill.append(answer["prefill"])
    if answer["peak"] is not None:
        row.peak = max(row.peak or 0, answer["peak"])
    row.system = answer["system"].strip()


def _child(request: Mapping[str, Any]) -> dict[str, Any]:
    lines: list[str] = []
    path = os.pathsep.join(part for part in (str(PACKAGE.parent), os.environ.get("PYTHONPATH")) if part)
    done = process.run(
        [sys.executable, "-m", "rwkvflow.engine.measure", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        on_line=lines.append,
    )
    try:
        answer: dict[str, Any] = json.loads(lines[-1]) if done.exit_code == 0 else {}
    except (ValueError, IndexError):
        answer = {}
    if "error" in answer:
        raise RwkvflowError(str(answer["error"]))
    if not answer:
        what = f"signal {-done.exit_code}" if done.exit_code < 0 else f"exit code {done.exit_code}"
        raise RwkvflowError(f"a measurement ended with {what}\n{done.tail}")
    return answer
