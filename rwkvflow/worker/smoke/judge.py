"""Compares what an artifact answered with the fp32 reference, and says in words what is wrong."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.worker import advice
from rwkvflow.worker.model.weight_types import LARGEST_F16
from rwkvflow.worker.smoke.questions import Answers, SmokeReference

#: What the proof of an artifact says whose runtime computes in fp16, where the smoke stage could not.
TYPES_ONLY = "its arithmetic in fp16 was not run: the figures show its types, and nothing passed what fp16 holds"
EQUAL_LOGITS = 1e-3  # the order of additions differs with the number of tokens that are read together
#: And of one whose tensors the judge found to be the checkpoint's.
EQUAL = (
    "the judge compared all tensors with the checkpoint's, and they are equal, bit for bit: the figures over the text "
    "are therefore the reference's own; what the {consumer} package reads was run over the first {tokens} tokens, and "
    "all logits after each of them compared"
)


@dataclass(frozen=True)
class QualityFigures:
    """How far an artifact is from the reference.

    logits       largest difference of a logit, relative to the standard deviation of the reference's logits
    token        how many tokens of the text were read where that difference stands
    agreement    share of the text's tokens after which both think the same one the likeliest
    perplexity   of the artifact, and
    rise         how much higher than the reference's it is, as a ratio (0.01: one percent; negative: lower)
    divergence   KL(reference || artifact) in nats, the mean over `divergence_tokens` of the text; None where it was
                 not reckoned
    """

    logits: float
    token: int
    agreement: float
    perplexity: float
    rise: float
    divergence: float | None = None
    divergence_tokens: int = 0


@dataclass(frozen=True)
class Stored:
    """How an artifact keeps its weights.

    weights  how many values the tensors of the checkpoint have
    bytes    what the artifact needs for them: scales and copies count, names, padding and vocabularies do not
    """

    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return self.bytes * 8 / max(self.weights, 1)


def finite(answers: Answers) -> str | None:
    """None, or where the first value that is no number stands."""
    bad = np.flatnonzero(~np.isfinite(answers.logits).all(1))
    if len(bad):
        row = answers.logits[bad[0]]
        count = int((~np.isfinite(row)).sum())
        return f"{count} of {len(row)} logits are NaN or infinite after {bad[0] + 1} tokens"
    bad = np.flatnonzero(~np.isfinite(answers.losses))
    return f"the logits are NaN or infinite after {bad[0] + 1} tokens" if len(bad) else None


def compare(reference: Answers, artifact: Answers) -> QualityFigures:
    """Both answered the same questions; all values are finite."""
    expected = reference.logits[: len(artifact.logits)]
    difference = np.abs(artifact.logits.astype(np.float64) - expected).max(1)
    spread = float(expected.std(dtype=np.float64)) or 1.0
    divergence = artifact.divergence
    return QualityFigures(
        logits=float(difference.max()) / spread,
        token=int(difference.argmax()) + 1,
        agreement=float((artifact.likeliest == reference.likeliest).mean()),
        perplexity=artifact.perplexity,
        rise=artifact.perplexity / reference.perplexity - 1,
        divergence=None if divergence is None else float(divergence.mean()),
        divergence_tokens=0 if divergence is None else len(divergence),
    )


def of_equal_problems(consumer: str, figures: QualityFigures) -> list[str]:
    """What is wrong where equal tensors do not give what the reference has of them, whatever the limits are."""
    if figures.logits <= EQUAL_LOGITS:
        return []
    return [
        f"its tensors are the checkpoint's, bit for bit, but what the {consumer} package reads gives logits that are "
        f"{_number(figures.logits)} of the reference's standard deviation off (worst after {figures.token} tokens)"
    ]


def of_equal(reference: SmokeReference, figures: QualityFigures) -> QualityFigures:
    """The figures of an artifact with the checkpoint's tensors, of which `figures` shows the first tokens alone."""
    tokens = len(reference.answers.logits)
    return replace(
        figures,
        agreement=1.0,
        perplexity=reference.answers.perplexity,
        rise=0.0,
        divergence=0.0,
        divergence_tokens=tokens,
    )


def problems(name: str, figures: QualityFigures, limits: Mapping[str, float]) -> list[str]:
    """What is over the limits, each with the limit and how the recipe changes it."""
    found = []
    if not figures.logits <= limits["logits"]:
        found.append(
            f"the logits differ by {_number(figures.logits)} of the reference's standard deviation (worst after "
            f"{figures.token} tokens); {name} allows {_number(limits['logits'])}{advice.change_limit(name, 'logits')}"
        )
    if not figures.rise <= limits["perplexity"]:
        found.append(
            f"the perplexity is {_number(figures.perplexity)}, {figures.rise:.2%} above the reference's; {name} "
            f"allows {limits['perplexity']:.2%}{advice.change_limit(name, 'perplexity')}"
        )
    return found


def overflow(name: str, reference: SmokeReference) -> list[str]:
    """What a runtime that computes in fp16 would take for infinite, over what the reference read."""
    peaks = {"k² of the feed-forward": reference.square, "what stands between layers": reference.residual}
    return [
        f"what runs {name} computes in fp16, which ends at {LARGEST_F16}, and {what} reaches {_number(peak)}: it would "
        "be infinite there; take a format whose runtime computes in fp32 or bf16"
        for what, peak in peaks.items()
        if not peak < LARGEST_F16
    ]


def shape_problem(reference: Answers, artifact: Answers) -> str | None:
    """None, or how the artifact's vocabulary differs."""
    if artifact.logits.shape[1] == reference.logits.shape[1]:
        return None
    return f"it has a vocabulary of {artifact.logits.shape[1]}, the checkpoint one of {reference.logits.shape[1]}"


def report(
    name: str,
    consumer: str,
    reference: SmokeReference,
    answers: Answers,
    figures: QualityFigures,
    stored: Stored,
    limits: Mapping[str, float],
    continuations: list[tuple[str, str]],
    failed: list[str],
    not_for: Mapping[str, str] | None = None,
) -> bytes:
    """Canonical JSON. Figures are rounded so coarsely that the order of a machine's additions does not show."""
    content: dict[str, Any] = {
        "format": name,
        "consumer": consumer,
        **({"proof": answers.note} if answers.note else {}),
        "evaluated": "runtime" if answers.runtime else "tensors",
        **({"not_for": dict(not_for)} if not_for else {}),
        "passed": not failed,
        "problems": failed,
        "logits": coarse(figures.logits),
        "agreement": round(figures.agreement, 3),
        "perplexity": round(figures.perplexity, 3),
        "reference_perplexity": round(reference.answers.perplexity, 3),
        "perplexity_rise": coarse(figures.rise),
        "kl_divergence": None if figures.divergence is None else small(figures.divergence),
        "kl_divergence_tokens": figures.divergence_tokens,
        "weights": stored.weights,
        "weight_bytes": stored.bytes,
        "bits_per_weight": round(stored.bits, 3),
        "limits": {key: limits[key] for key in ("logits", "perplexity")},
        "text_tokens": len(reference.questions.text),
        "compared_tokens": len(answers.logits),
        "tokenizer": reference.tokenizer,
        "note": reference.note,
        "continuations": [{"prompt": prompt, "text": text} for prompt, text in continuations],
    }
    if (pace := answers.pace) is not None:
        content["tokens_per_second"] = float(f"{pace.tokens_per_second:.3g}")
        content["speed"] = {"tokens": pace.tokens, "threads": pace.threads, "cpu": processor()}
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def coarse(value: float) -> float:
    """To four digits after the point: what is smaller differs between machines."""
    return round(value, 4) + 0.0  # never -0.0


def small(value: float) -> float:
    """To three digits, and no more than six after the point."""
    return float(f"{round(value, 6):.3g}") + 0.0


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _number(value: float) -> str:
    return f"{value:.3g}"
