"""A run as one self-contained page of HTML, for a browser on a desk or a phone, by day or by night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rwkvflow import __version__
from rwkvflow.base.text import bytes_text, shown
from rwkvflow.display.report_data import ArtifactRow, RunData
from rwkvflow.display.words import duration
from rwkvflow.documents.formats import family_of
from rwkvflow.release.choose import Runnable, best_for_some
from rwkvflow.release.domain_plot import domain_plot_svg
from rwkvflow.release.plot import FAILED, WIDTH, PlotPoint, draw, style
from rwkvflow.release.quality import Quality, figures_of

MARKS = {"done": "✓", "cached": "=", "failed": "✗", "running": "…"}
NARROW, MANY = 360, 16  # pixels of a plot that a phone shows whole, and from how many points on it is a wide one
# Within the page, a plot is of the page's own colours.
INKS = "text{font-family:inherit;fill:var(--text)}.q{fill:var(--soft)}.bg{fill:none}.g{stroke:var(--line)}"
INKS += ".l{stroke:var(--card)}.o{fill:var(--card)}.x{stroke:var(--bad)}"


@dataclass(frozen=True)
class Cost:
    """What the plots show: a figure of the smoke report, what it is shown times, and its words."""

    key: str
    factor: float
    words: str
    unit: str = ""


COSTS = (
    Cost("kl_divergence", 1.0, "KL divergence, nats a token"),
    Cost("perplexity_rise", 100.0, "rise of the perplexity, %", "%"),
    Cost("logits", 1.0, "largest error of a logit"),
)


def report_html(run: RunData) -> str:
    """The page. Whatever a run can contain is escaped: names, logs, messages, what a model wrote."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("rwkvflow.display"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_fit_to_show,
    )
    environment.filters |= {
        "duration": duration,
        "bytes": size_text,
        "figure": figure,
        "mark": lambda status: MARKS.get(status, "–"),
        "kind": diff_kind,
        "left": lambda step, whole: _percent(step.start or 0.0, whole),
        "width": lambda step, whole: max(
            0.6, min(_percent(step.seconds, whole), 100 - _percent(step.start or 0.0, whole))
        ),
    }
    cost = cost_of(run.artifacts)
    panels = [(model, wide, Markup(svg)) for model, wide, svg in _panels(run.artifacts, cost)]  # noqa: S704
    domains = _domains(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        when=datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        good=sum(item.status in ("done", "cached") for item in run.artifacts),
        failures=[step for step in run.steps if step.status == "failed"],
        texts=[item for item in run.artifacts if said(item)],
        panels=panels,
        cost=cost.words,
        plot_style=Markup(style("svg ", FAILED + INKS)),  # noqa: S704 - ours
        domains=None if domains is None else Markup(domains),  # noqa: S704 - escaped where it is made
        memory=_memory(run.artifacts),
        timed=any(_number(item.smoke.get("tokens_per_second")) is not None for item in run.artifacts),
        version=__version__,
    )


def _domains(run: RunData) -> str | None:
    """The card's plot by domain, as SVG; None where nothing was measured so."""
    found = [
        figures
        for item in run.artifacts
        if item.quality and item.size is not None
        if (figures := figures_of(item.id, item.model, item.format, item.size, item.smoke, item.quality)) is not None
    ]
    return domain_plot_svg(Quality(release=run.name, text=None, models={}, artifacts=tuple(found)), "#domains ", INKS)


def _memory(items: Sequence[ArtifactRow]) -> dict[str, tuple[int, bool]]:
    """By artifact: what running it takes, about, in bytes, and whether no other file of its kind loses less in that."""
    kinds: dict[tuple[str, str], list[Runnable]] = {}
    for item in items:
        if item.size is not None and item.status in ("done", "cached"):
            loss = _number(item.smoke.get("kl_divergence"))
            runnable = Runnable(item.id, item.model, item.format, item.size, (), loss)
            kinds.setdefault((item.model, family_of(item.format)), []).append(runnable)
    best = {pick.path for some in kinds.values() for pick in best_for_some(some)}
    return {each.path: (each.memory, each.path in best) for some in kinds.values() for each in some}


def _fit_to_show(value: object) -> object:
    """Text in a page is escaped as HTML; what reverses or hides text is spelt out besides. Markup is ours."""
    return shown(value) if type(value) is str else value


def said(item: ArtifactRow) -> list[dict[str, Any]]:
    """What the artifact wrote during its smoke."""
    found = item.smoke.get("continuations")
    return found if isinstance(found, list) and all(isinstance(entry, dict) for entry in found) else []


def cost_of(items: Sequence[ArtifactRow]) -> Cost:
    """What the plot shows: the KL divergence; where it is missing, the rise of the perplexity or the logits' error."""
    return next(
        (cost for cost in COSTS if any(_number(item.smoke.get(cost.key)) is not None for item in items)), COSTS[-1]
    )


def _panels(items: Sequence[ArtifactRow], cost: Cost) -> Sequence[tuple[str, bool, str]]:
    """Of each model that has two artifacts or more: its name, whether its plot is a wide one, and the plot."""
    found = []
    for model in dict.fromkeys(item.model for item in items):
        points: dict[tuple[str, int, float], PlotPoint] = {}
        for item in items:
            value = _number(item.smoke.get(cost.key))
            if item.model != model or not item.size or value is None:
                continue
            points.setdefault((item.format, item.size, value), _point(item, item.size, cost, value * cost.factor))
        wide = len(points) > MANY
        title = f"{model}: {cost.words}, against size"
        svg = draw(list(points.values()), [model], cost.words, title, width=WIDTH if wide else NARROW)
        if svg is not None:
            found.append((model, wide, svg))
    return found


def _point(item: ArtifactRow, size: int, cost: Cost, value: float) -> PlotPoint:
    return PlotPoint(
        _label(item.format),
        f"{item.id}: {size_text(size)}, {cost.words.partition(',')[0]} {value:.3g}{cost.unit}",
        size,
        value,
        hollow=item.smoke.get("evaluated") == "tensors",
        failed=item.status not in ("done", "cached"),
    )


def _label(name: str) -> str:
    from rwkvflow.worker.formats import FORMATS

    item = FORMATS.get(name)
    return name if item is None else str(item.label)


def _number(value: object) -> float | None:
    """A finite number, else None: reports come from files."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _percent(part: float, run: RunData) -> float:
    return round(min(100.0, 100.0 * part / run.seconds), 2) if run.seconds > 0 else 0.0


def figure(value: object, form: str, factor: float = 1.0) -> str:
    """A number in a form such as "%.3f"; a dash where there is none."""
    number = _number(value)
    return "–" if number is None else form % (number * factor + 0.0)


def size_text(size: int | None) -> str:
    """Bytes; a dash where nobody knows how many."""
    return "–" if size is None else bytes_text(size)


def diff_kind(line: str) -> str:
    """Class of a line of a unified diff."""
    if line.startswith(("+++", "---", "@@")):
        return "at"
    return {"+": "add", "-": "del"}.get(line[:1], "")
