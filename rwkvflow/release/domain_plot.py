"""The plot by domain: a panel a model, a line a domain: what each of its files loses there, against its size.

Drawn with what the quality plot is drawn with, and as that one is: plain SVG, the same bytes everywhere. The lines show
what a mean hides: a file may be near the checkpoint in prose and far from it in sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rwkvflow.release.labels import Box, Spot, place
from rwkvflow.release.plot import (
    BOTTOM,
    LEFT,
    LETTER,
    RIGHT,
    SERIES,
    WIDTH,
    axes,
    head,
    label_lines,
    scale_of,
    shape,
    style,
)
from rwkvflow.release.quality import ArtifactFigures, Quality

HEIGHT, HEAD, TITLE = 300, 74, 26  # of a panel; of what stands above the first; of a panel's own title
MOST = 6  # panels: the models of a release are alike in this


def domain_plot_svg(quality: Quality, scope: str = "", more: str = "") -> str | None:
    """The picture; None where no model has two artifacts that were measured over domains.

    `scope` and further rules: see plot.style.
    """
    models: dict[str, list[ArtifactFigures]] = {}
    for item in quality.artifacts:
        if item.domains and item.size > 0:
            models.setdefault(item.model, []).append(item)
    panels = [(model, sorted(some, key=lambda item: (item.size, item.path))) for model, some in models.items()]
    panels = [(model, some) for model, some in panels if len(some) > 1][:MOST]
    if not panels:
        return None
    domains = list(dict.fromkeys(name for _, some in panels for item in some for name in item.domains or ()))
    each = HEIGHT + BOTTOM + (TITLE if len(panels) > 1 else 0)
    height = HEAD + each * len(panels)
    title = "KL divergence from the fp32 reference by domain, against size"
    parts = head(height, title, "Quality by domain", style(scope, _lines_style() + more))
    x = float(LEFT)
    for index, name in enumerate(domains):
        parts.append(shape(index, x + 6, 47) + f'<text x="{x + 16:g}" y="51">{escape(name)}</text>')
        x += LETTER * len(name) + 34
    for number, (model, some) in enumerate(panels):
        top = HEAD + each * number
        if len(panels) > 1:
            parts.append(f'<text class="q" x="{LEFT}" y="{top + 14}">{escape(model)}</text>')
            top += TITLE
        parts += _panel(some, domains, top)
    return "\n".join([*parts, "</svg>", ""])


def _lines_style() -> str:
    dark = "".join(f".p{i}{{stroke:{c}}}" for i, (_, c) in enumerate(SERIES))
    light = "".join(f".p{i}{{stroke:{c}}}" for i, (c, _) in enumerate(SERIES))
    return f".p{{fill:none;stroke-width:1.4;opacity:.6}}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _panel(some: Sequence[ArtifactFigures], domains: Sequence[str], top: float) -> list[str]:
    losses = [(item, found.kl) for item in some for found in (item.domains or {}).values()]
    scale = scale_of([(item.size, kl) for item, kl in losses], top, top + HEIGHT)
    parts = axes(max(item.size for item in some), scale, top + HEIGHT, "KL divergence, nats a token")
    markers: list[str] = []
    for index, name in enumerate(domains):
        points = [(item, found) for item in some if (found := (item.domains or {}).get(name)) is not None]
        places = [(scale.across(item.size), scale.down(found.kl)) for item, found in points]
        line = " ".join(f"{x:g},{y:g}" for x, y in places)
        parts.append(f'<polyline class="p p{index % len(SERIES)}" points="{line}"/>')
        for (item, found), (x, y) in zip(points, places, strict=True):
            told = f"{item.path}, {name}: {found.kl:g} nats" + ("" if found.kl_se is None else f" ± {found.kl_se:g}")
            markers.append(f"<g><title>{escape(told)}</title>{shape(index, x, y)}</g>")
    spots = [(scale.across(item.size), scale.down(kl)) for item, kl in losses]
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    highest = [
        Spot(item.format, scale.across(item.size), min(scale.down(kl) for of, kl in losses if of is item))
        for item in some
    ]
    labels, _ = place(highest, Box(LEFT + 4, top + 2, WIDTH - RIGHT, top + HEIGHT - 2), taken)
    return [*parts, *(line for label in labels for line in label_lines(label, coloured=False)), *markers]
