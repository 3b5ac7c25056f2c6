"""quality.json: what each artifact of a release takes and what it loses, for programs.

The figures are those of the smoke reports, which docs/concepts/smoke.md defines; nothing is computed here but their
order. A new kind of figure is a new key; what a key means changes only with `version`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvflow.release.artifacts import Row


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Speed(_Part):
    """Reading one token after another. `tokens_per_second` is the median over `tokens` of them on that `cpu`."""

    tokens_per_second: float
    tokens: int
    threads: int | None
    cpu: str


class DomainFigures(_Part):
    """One artifact over `tokens` of the text of a domain, against the checkpoint in F32, by librwkv both.

    rise       of the perplexity: 0.01 is one percent more
    kl         KL divergence in nats a token: the mean, the 99th percentile, the largest
    agreement  share of tokens after which both hold the same one the likeliest
    *_se       standard errors, from means of 128 tokens that follow one another; null for fewer than 256 tokens
    """

    tokens: int
    perplexity: float
    perplexity_se: float | None
    reference_perplexity: float
    rise: float
    rise_se: float | None
    kl: float
    kl_se: float | None
    kl_p99: float
    kl_max: float
    agreement: float
    agreement_se: float | None


class TaskFigures(_Part):
    """A share of `items` answered right, its standard error, and the share that the checkpoint in F32 has right."""

    items: int
    right: float
    se: float
    reference: float


class ArtifactFigures(_Part):
    """One artifact. A figure is null where it was not measured.

    path             of the file or folder in the release; sha256 of a file, null for a folder
    size             bytes of all its files
    weight_bytes     of these, what the weights take; bits_per_weight is 8 · weight_bytes / the model's weights
    perplexity_rise  against the fp32 reference: 0.01 is one percent more
    kl_divergence    of the artifact from the reference, in nats, the mean over kl_divergence_tokens of the text
    top1_agreement   share of the text's tokens after which both hold the same one the likeliest
    logits           largest difference of a logit, in standard deviations of the reference's
    evaluated        "runtime": by the consumer; "tensors": by our forward pass over what the file holds
    proof            how the consumer tested the artifact, where it did not simply run it
    domains, tasks   over the texts and tasks that ship, where the recipe says quality: full
    layers           KL divergence in nats where a single layer alone has the artifact's values, the first layer first
    """

    path: str
    model: str
    format: str
    sha256: str | None
    size: int
    weight_bytes: int | None
    bits_per_weight: float | None
    perplexity: float | None
    perplexity_rise: float | None
    kl_divergence: float | None
    kl_divergence_tokens: int
    top1_agreement: float | None
    logits: float | None
    consumer: str
    evaluated: Literal["runtime", "tensors"]
    proof: str | None
    speed: Speed | None
    domains: dict[str, DomainFigures] | None = None
    tasks: dict[str, TaskFigures] | None = None
    layers: tuple[float, ...] | None = None


class ReferenceFigures(_Part):
    """What a model's artifacts were compared with: the fp32 forward pass over its checkpoint."""

    weights: int | None
    perplexity: float | None
    text_tokens: int
    tokenizer: str


class Quality(_Part):
    """The file. Artifacts stand in the order of the recipe."""

    version: Literal[1] = 1
    release: str
    text: str | None  # file name of the text; null for the one that ships with rwkvflow
    models: dict[str, ReferenceFigures]
    artifacts: tuple[ArtifactFigures, ...]


def quality_of(name: str, rows: Sequence[Row], text: str | None) -> Quality:
    """What the rows' smoke reports say."""
    models: dict[str, ReferenceFigures] = {}
    for row in rows:
        models.setdefault(row.model, _reference(row.smoke))
    return Quality(release=name, text=text, models=models, artifacts=tuple(map(_measured, rows)))


def quality_bytes(quality: Quality) -> bytes:
    """Canonical JSON."""
    content = quality.model_dump(mode="json")
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_quality(data: bytes) -> Quality:
    """Reverse of quality_bytes. Raises ValueError with what is wrong, on one line."""
    try:
        return Quality.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from None


def differences(measured: ArtifactFigures, smoke: Mapping[str, Any]) -> list[str]:
    """Names of figures that differ from those of the artifact's smoke report."""
    told = _figures(smoke)
    mine = measured.model_dump()
    return [key for key, value in told.items() if mine[key] != value]


def full_differences(measured: ArtifactFigures, report: Mapping[str, Any]) -> list[str]:
    """The same of figures by domain, against the artifact's quality report."""
    told = ArtifactFigures.model_validate({**measured.model_dump(), **_full(report)})
    return [key for key in ("domains", "tasks", "layers") if getattr(told, key) != getattr(measured, key)]


def figures_of(
    path: str, model: str, form: str, size: int, smoke: Mapping[str, Any], report: Mapping[str, Any]
) -> ArtifactFigures | None:
    """The figures of an artifact that is in no release yet; None for reports that have not the form of such."""
    known = {"path": path, "model": model, "format": form, "sha256": None, "size": size}
    try:
        return ArtifactFigures.model_validate({**known, **_figures(smoke), **_full(report)})
    except (ValidationError, KeyError, TypeError, ValueError):
        return None


def _measured(row: Row) -> ArtifactFigures:
    return ArtifactFigures.model_validate(
        {
            "path": row.path,
            "model": row.model,
            "format": row.format,
            "sha256": row.sha256 if row.files == (row.path,) else None,
            "size": row.size,
            **_figures(row.smoke),
            **_full(row.quality),
        }
    )


def _figures(smoke: Mapping[str, Any]) -> dict[str, Any]:
    speed = smoke.get("speed")
    return {
        "weight_bytes": smoke.get("weight_bytes"),
        "bits_per_weight": _float(smoke.get("bits_per_weight")),
        "perplexity": _float(smoke.get("perplexity")),
        "perplexity_rise": _float(smoke.get("perplexity_rise")),
        "kl_divergence": _float(smoke.get("kl_divergence")),
        "kl_divergence_tokens": smoke.get("kl_divergence_tokens", 0),
        "top1_agreement": _float(smoke.get("agreement")),
        "logits": _float(smoke.get("logits")),
        "consumer": smoke.get("consumer", ""),
        "evaluated": smoke.get("evaluated", "runtime"),
        "proof": smoke.get("proof"),
        "speed": {"tokens_per_second": float(smoke["tokens_per_second"]), **speed} if speed else None,
    }


def _full(report: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a quality report; none of an empty one."""
    if not report:
        return {}
    layers = report.get("layers")
    return {
        "domains": report["domains"],
        "tasks": report["tasks"],
        "layers": None if layers is None else tuple(map(float, layers)),
    }


def _reference(smoke: Mapping[str, Any]) -> ReferenceFigures:
    return ReferenceFigures(
        weights=smoke.get("weights"),
        perplexity=_float(smoke.get("reference_perplexity")),
        text_tokens=smoke.get("text_tokens", 0),
        tokenizer=smoke.get("tokenizer", ""),
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
