"""The plotter of cards and reports: what each artifact takes on the disk, and how far it is from the fp32 reference.

Text in, text out, and no library: the same figures give the same bytes on every machine. Plain SVG, which a browser
shows in light or in dark, also within an <img>; in a page it takes the page's colours.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rwkvflow.release.labels import CHARACTER, LINE, Box, Label, Spot, place
from rwkvflow.release.quality import Quality

WIDTH, LEFT, RIGHT, BOTTOM = 900, 86, 16, 52  # pixels
LEAST, MORE, MOST = 380, 90, 1400  # height of the plot itself, what it grows by where labels lack room, and at most
NONE, MANY = (34, 104), 4  # height of the row of those that differ by nothing, and from how many on it is the second
TINY = 1e-9  # what is less is drawn as 0; reports have no more than six digits after the point
CROWD = 90  # artifacts from which on not all are labelled, so that it is not tried long
LETTER = 7.2  # pixels of a character that is no label
HOLLOW = "Hollow: not run by a runtime of its own; the figures are those of a forward pass over what the file holds."
CROSSED_OUT = "A cross: did not pass its test."
SERIES = (  # in light and in dark
    ("#0969da", "#58a6ff"),
    ("#c2410c", "#f0883e"),
    ("#1a7f37", "#3fb950"),
    ("#8250df", "#bc8cff"),
    ("#bf3989", "#f778ba"),
    ("#0e7490", "#39c5cf"),
)
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}"
    ".l{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}.q{fill:#59636e}.h{font-size:15px;font-weight:600}.bg{fill:#fff}.g{stroke:#d8dee4}"
    ".z{stroke:#8c959f;stroke-dasharray:3 3}.e{stroke:#8c959f;stroke-width:.8}"
    + "".join(f".s{i}{{fill:{c};stroke:{c}}}.t{i}{{fill:{c}}}" for i, (c, _) in enumerate(SERIES))
    + ".o{fill:#fff;stroke-width:1.8}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.q{fill:#9198a1}.bg{fill:#0d1117}.g{stroke:#30363d}"
    ".z,.e{stroke:#6e7681}.l{stroke:#0d1117}"
    + "".join(f".s{i}{{fill:{c};stroke:{c}}}.t{i}{{fill:{c}}}" for i, (_, c) in enumerate(SERIES))
    + ".o{fill:#0d1117}}"
)
FAILED = ".x{fill:none;stroke:#cf222e;stroke-width:2.2}@media(prefers-color-scheme:dark){.x{stroke:#ff7b72}}"
_SELECTORS = re.compile(r"((?:\.\w+|text)(?:,(?:\.\w+|text))*)\{")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def style(scope: str = "", more: str = "") -> str:
    """The rules of a picture; where it stands in a page, `scope` is what they are for: "#plot " with its space."""
    return _SELECTORS.sub(lambda found: ",".join(scope + one for one in found[1].split(",")) + "{", STYLE + more)


@dataclass(frozen=True)
class PlotPoint:
    """One artifact: what it is called beside its mark and on it, its size in bytes, what it costs.

    `series` is its model's. Hollow: only its values were looked at; failed: it did not pass.
    """

    label: str
    title: str
    size: int
    cost: float
    series: int = 0
    hollow: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Scale:
    """From figures to pixels, both axes logarithmic; `zero` is the row of what costs nothing, None without one."""

    x: tuple[float, float]  # log10 of the sizes at the edges
    y: tuple[float, float]  # log10 of the divergences at the edges
    top: float
    bottom: float
    zero: float | None
    width: int = WIDTH  # of the picture

    def across(self, size: float) -> float:
        """Of a size."""
        share = (math.log10(size) - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + (self.width - LEFT - RIGHT) * share, 1)

    def down(self, divergence: float) -> float:
        """Of a divergence."""
        if divergence < TINY and self.zero is not None:
            return self.zero
        share = (math.log10(divergence) - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.bottom - (self.bottom - self.top) * share, 1)


def plot_svg(quality: Quality) -> str | None:
    """The picture of a release; None where fewer than two artifacts have a divergence."""
    shown = [item for item in quality.artifacts if item.kl_divergence is not None and item.size > 0]
    models = list(dict.fromkeys(item.model for item in shown))
    points = [
        PlotPoint(
            item.format,
            f"{item.path}: {item.size} B, {item.kl_divergence:g} nats",
            item.size,
            item.kl_divergence or 0.0,
            models.index(item.model),
            item.evaluated == "tensors",
        )
        for item in shown
    ]
    title = "KL divergence from the fp32 reference against size"
    heading = "Quality against size"
    return draw(points, models, "KL divergence from fp32, nats a token", title, heading=heading, rules=style())


def draw(
    points: Sequence[PlotPoint],
    models: Sequence[str],
    words: str,
    title: str,
    *,
    heading: str = "",
    rules: str = "",
    width: int = WIDTH,
) -> str | None:
    """The picture of all points; None of fewer than two. `words` stand beside the vertical axis.

    `models` name the series; of one alone they are not told. Without a heading, what says so stands in the page around
    it, and without `rules` so do those: style(), and FAILED where a point is.
    """
    if len(points) < 2:
        return None
    legend = _legend(models, width)
    top = (42 if heading else 12) + 20 * len(legend)
    most = int(0.6 * (width - LEFT - RIGHT) / CHARACTER)
    tried: list[tuple[int, int, Scale, list[Spot], list[Label]]] = []
    for height in range(LEAST, MOST + 1, MORE) if len(points) < CROWD else (2 * LEAST,):
        scale = scale_of([(point.size, point.cost) for point in points], top, top + height, width)
        spots = [
            Spot(_cut(point.label, most), scale.across(point.size), scale.down(point.cost), point.series)
            for point in points
        ]
        markers = [Box(s.x - 6, s.y - 6, s.x + 6, s.y + 6) for s in spots]
        labels, homeless = place(spots, Box(LEFT + 4, top + 2, width - RIGHT, top + height - 2), markers)
        tried.append((homeless, height, scale, spots, labels))
        if not homeless:
            break
    _, height, scale, spots, labels = min(tried, key=lambda one: one[:2])
    said = [HOLLOW] if any(point.hollow for point in points) else []
    said += [CROSSED_OUT] if any(point.failed for point in points) else []
    captions = [line for one in said for line in textwrap.wrap(one, int((width - LEFT - RIGHT) / 6.2))]
    under = top + height + BOTTOM
    zero = "≤ 0" if min(point.cost for point in points) < 0 else "0"
    return "\n".join(
        [
            *head(under + 18 * len(captions), title, heading, rules, width),
            *legend,
            *axes(max(point.size for point in points), scale, top + height, words, zero),
            *(line for label in labels for line in label_lines(label, len(models) > 1)),
            *(_marker(point, spot) for point, spot in zip(points, spots, strict=True)),
            *(
                f'<text class="q l" x="{LEFT}" y="{under + 6 + 18 * number:g}">{line}</text>'
                for number, line in enumerate(captions)
            ),
            "</svg>",
            "",
        ]
    )


def _cut(text: str, most: int) -> str:
    """Its beginning and its end, where it is longer than there is room for."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1 - most // 2) :]}"


def scale_of(points: Sequence[tuple[int, float]], top: float, bottom: float, width: int = WIDTH) -> Scale:
    """Of (size, cost) of all that is shown, in a plot between two heights."""
    sizes = [math.log10(size) for size, _ in points]
    low, high = min(sizes), max(sizes)
    pad = max(0.06 * (high - low), (0.35 - (high - low)) / 2, 0.03)
    costs = [cost for _, cost in points if cost >= TINY]
    zeros = len(points) - len(costs)
    row = NONE[zeros > MANY] if zeros else 0
    first = math.log10(min(costs)) if costs else -1.0
    last = math.log10(max(costs)) if costs else 0.0
    spare = max(0.08 * (last - first), 0.15)
    return Scale(
        (low - pad, high + pad),
        (first - spare, last + spare),
        top,
        bottom - row,
        bottom - row / 2 if row else None,
        width,
    )


def head(height: float, title: str, heading: str, rules: str, width: int = WIDTH) -> list[str]:
    """What a picture begins with: its title, its rules of style, and what stands above it."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
    ]
    if rules:
        parts += [f"<style>{rules}</style>"]
    parts += [f'<rect class="bg" width="{width}" height="{height:g}" rx="6"/>']
    if heading:
        parts += [
            f'<text class="h" x="{LEFT}" y="27">{heading}</text>',
            f'<text class="q" x="{width - RIGHT}" y="27" text-anchor="end">lower and further left is better</text>',
        ]
    return parts


def _legend(models: Sequence[str], width: int) -> list[str]:
    """A line each; nothing for one model alone."""
    if len(models) < 2:
        return []
    lines: list[str] = []
    x = float(LEFT)
    parts: list[str] = []
    for index, name in enumerate(models):
        model = _cut(name, int((width - LEFT - RIGHT - 34) / LETTER))
        taken = LETTER * len(model) + 34
        if parts and x + taken > width - RIGHT:
            lines.append("".join(parts))
            x, parts = float(LEFT), []
        y = 47 + 20 * len(lines)
        parts.append(shape(index, x + 6, y - 4) + f'<text x="{x + 16:.1f}" y="{y}">{escape(model)}</text>')
        x += taken
    return [*lines, "".join(parts)]


def axes(largest: int, scale: Scale, bottom: float, words: str, zero: str = "0") -> list[str]:
    """Lines and figures; `words` stand beside the vertical one, and `largest` is the largest size, in bytes."""
    right = scale.width - RIGHT
    parts: list[str] = []
    for value in ticks(*scale.y):
        y = scale.down(value)
        parts.append(f'<line class="g" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="q" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{power_text(value)}</text>')
    if scale.zero is not None:
        line = scale.bottom
        parts.append(f'<line class="z" x1="{LEFT}" x2="{right}" y1="{line:g}" y2="{line:g}"/>')
        parts.append(f'<text class="q" x="{LEFT - 8}" y="{scale.zero + 4:.1f}" text-anchor="end">{zero}</text>')
    unit, word = next((unit for unit in UNITS if largest >= unit[0]), UNITS[-1])
    for value in ticks(scale.x[0] - math.log10(unit), scale.x[1] - math.log10(unit)):
        x = scale.across(value * unit)
        parts.append(f'<line class="g" x1="{x}" x2="{x}" y1="{scale.top:g}" y2="{bottom:g}"/>')
        parts.append(f'<text class="q" x="{x}" y="{bottom + 18:g}" text-anchor="middle">{value:g}</text>')
    middle = (scale.top + bottom) / 2
    return [
        *parts,
        f'<text x="{(LEFT + right) / 2:g}" y="{bottom + 40:g}" text-anchor="middle">size, {word}</text>',
        f'<text x="20" y="{middle:g}" text-anchor="middle" transform="rotate(-90 20 {middle:g})">{words}</text>',
    ]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10^low and 10^high: as few digits as give four or more, and never more than twelve."""
    found: list[float] = []
    for digits in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    ):
        more = [
            float(f"{digit}e{power}")
            for power in range(math.floor(low), math.ceil(high) + 1)
            for digit in digits
            if low <= math.log10(float(f"{digit}e{power}")) <= high
        ]
        if len(more) > 12:
            break
        found = more
        if len(found) >= 4:
            break
    return found


def power_text(value: float) -> str:
    """0.001 as it is; 0.00001 as a power of ten, which is shorter."""
    if value >= 1e-4:
        return f"{value:g}"
    digits, _, exponent = f"{value:e}".partition("e")
    power = "10" + str(int(exponent)).translate(_RAISED)
    return power if float(digits) == 1 else f"{float(digits):g}·{power}"


def _marker(point: PlotPoint, spot: Spot) -> str:
    if point.failed:
        drawn = f'<path class="x" d="M{spot.x - 4.5:g} {spot.y - 4.5:g}l9 9m0 -9l-9 9"/>'
    else:
        drawn = shape(point.series, spot.x, spot.y, point.hollow)
    return f"<g><title>{escape(point.title)}</title>{drawn}</g>"


def shape(series: int, x: float, y: float, hollow: bool = False) -> str:
    """Models differ in colour and in shape."""
    kind = f"s{series % len(SERIES)}{' o' if hollow else ''}"
    match series % 4:
        case 0:
            return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="4.5"/>'
        case 1:
            return f'<rect class="{kind}" x="{x - 4:g}" y="{y - 4:g}" width="8" height="8"/>'
        case 2:
            return f'<path class="{kind}" d="M{x:g} {y - 5:g}l5 9h-10z"/>'
    return f'<path class="{kind}" d="M{x:g} {y - 5.5:g}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>'


def label_lines(label: Label, coloured: bool) -> list[str]:
    """A label, in the colour of its series where that tells anything, and its line."""
    parts = []
    if label.leader is not None:
        (x, y), (to_x, to_y) = label.spot, label.leader
        parts.append(f'<line class="e" x1="{x:g}" y1="{y:g}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>')
    kind = f"l t{label.series % len(SERIES)}" if coloured else "l"
    for index, line in enumerate(label.lines):
        y = label.box.top + LINE * index + 10.5
        anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
        parts.append(f'<text class="{kind}" x="{label.x:.1f}" y="{y:.1f}"{anchor}>{escape(line)}</text>')
    return parts
