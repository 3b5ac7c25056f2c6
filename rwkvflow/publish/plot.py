"""The quality plot: one line an artifact, how many bits a weight takes and what that costs in perplexity. Plain SVG.

Text in, text out, and no library: the same figures give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rwkvflow.publish.artifacts import Row

LINE, TOP, LEFT, BITS, RISE, GAP = 22, 46, 270, 200, 230, 70  # pixels
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.q{fill:#59636e}.h{font-weight:600}"
    ".b{fill:#8ec5ff}.z{stroke:#8c959f}.s{stroke:#b45309;stroke-width:2}.d{fill:#d97706}.bg{fill:#ffffff}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.q{fill:#9198a1}.b{fill:#1f6feb}.bg{fill:#0d1117}}"
)


def plot_svg(rows: Sequence[Row]) -> str | None:
    """The picture; None where fewer than two artifacts have both figures."""
    shown = [
        (row, row.bits, float(row.smoke["perplexity_rise"]) * 100)
        for row in rows
        if row.bits is not None and isinstance(row.smoke.get("perplexity_rise"), int | float)
    ]
    if len(shown) < 2:
        return None
    shown.sort(key=lambda item: (item[0].model, -item[1], item[0].path))
    most = max(bits for _, bits, _ in shown)
    low = min(0.0, *(rise for _, _, rise in shown))
    high = max(0.0, *(rise for _, _, rise in shown))
    span = (high - low) or 1.0
    start = LEFT + BITS + GAP
    zero = start + RISE * -low / span
    width, height = start + RISE + GAP, TOP + LINE * len(shown) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">',
        "<title>Bits per weight and rise of the perplexity of each file</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="bg" width="{width}" height="{height}" rx="6"/>',
        f'<text class="h" x="{LEFT}" y="26">bits per weight</text>',
        f'<text class="h" x="{start}" y="26">perplexity against fp32, %</text>',
        f'<line class="z" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP - 8}" y2="{height - 10}"/>',
    ]
    for index, (row, bits, rise) in enumerate(shown):
        y = TOP + LINE * index + 12
        length, x = BITS * bits / most, start + RISE * (rise - low) / span
        name = row.path.rpartition("/")[2]
        name = name if len(name) <= 40 else "…" + name[-39:]
        parts += [
            f'<text x="{LEFT - 10}" y="{y}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="b" x="{LEFT}" y="{y - 10}" width="{length:.1f}" height="12" rx="2"/>',
            f'<text class="q" x="{LEFT + length + 6:.1f}" y="{y}">{bits:.2f}</text>',
            f'<line class="s" x1="{zero:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y - 4}"/>',
            f'<circle class="d" cx="{x:.1f}" cy="{y - 4}" r="4"/>',
            f'<text class="q" x="{max(x, zero) + 9:.1f}" y="{y}">{rise + 0.0:+.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
