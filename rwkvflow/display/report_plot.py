"""The quality plot of a report: a panel a model, size against what it costs. Inline SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250  # of a panel, in its own units; a phone shows it at about that size
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 34
SMALL = 5.8  # width of a character of a label


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One artifact: its size in bytes, what it costs, and how it is called."""

    label: str
    size: int
    cost: float
    title: str
    bad: bool = False


def panel(points: Sequence[Point], cost: str, unit: str) -> str:
    """SVG of one model's artifacts. `cost` names the vertical axis, `unit` stands behind its figures."""
    sizes, costs = [point.size for point in points], [point.cost for point in points]
    right = max(sizes) * 1.08 or 1
    low, high = min(0.0, *costs), max(0.0, *costs)
    span = (high - low) or 1.0
    low, high = low - 0.06 * span, high + 0.1 * span

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / right

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(cost)} against size">']
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}{escape(unit)}</text>')
    zero = y(0.0)
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    scale, word = next((s, w) for s, w in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if right >= s)
    for value in ticks(0.0, right / scale):
        parts.append(
            f'<text x="{x(value * scale):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{word}</text>')
    placed = [(x(p.size) - 5, y(p.cost) - 5, x(p.size) + 5, y(p.cost) + 5) for p in points]
    for point in sorted(points, key=lambda point: (point.size, point.label)):
        at_x, at_y = x(point.size), y(point.cost)
        kind = "bad" if point.bad else "dot"
        line = (LEFT, zero - 1, WIDTH - RIGHT, zero + 1)
        label = _label(point.label, at_x, at_y, placed, [line]) or _label(point.label, at_x, at_y, placed, [])
        parts.append(
            f'<g><title>{escape(point.title)}</title><circle class="{kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4.5"/>'
        )
        parts.append(f"{label}</g>")
    return "".join([*parts, "</svg>"])


def _label(text: str, x: float, y: float, placed: list[Box], lines: list[Box]) -> str:
    """The label at the first place around its point where nothing else is; empty where there is none."""
    width = SMALL * len(text)
    for left, base in (
        (x + 8, y + 4),
        (x - 8 - width, y + 4),
        (x - width / 2, y - 8),
        (x - width / 2, y + 17),
        (x + 6, y - 7),
        (x - 6 - width, y - 7),
        (x + 6, y + 15),
        (x - 6 - width, y + 15),
    ):
        box = (left, base - 9, left + width, base + 2)
        if box[0] < LEFT + 2 or box[2] > WIDTH - 2 or box[1] < 2 or box[3] > HEIGHT - BOTTOM + 2:
            continue
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in [*placed, *lines]):
            continue
        placed.append(box)
        return f'<text class="name" x="{left:.1f}" y="{base:.1f}">{escape(text)}</text>'
    return ""


def ticks(low: float, high: float) -> list[float]:
    """Two to eight round numbers between two others."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** _floor_log10(span)
    step = next(step * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0) if span / (step * factor) <= 7)
    first = int(low / step) - 1
    values = [round((first + index) * step, 10) for index in range(12)]
    return [value + 0.0 for value in values if low <= value <= high]


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])
