"""Where labels of a plot go: beside their points, over nothing else, with a line to the point where they stand away.

Greedy, the most crowded first, and deterministic: places are tried in a fixed order, by sums and products alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER, LINE, CHARACTERS = 6.5, 14.0, 36  # pixels of a character, of a line; characters of a line
NEAR = 10.0  # points closer than this share a label
REACH = (9.0, 14.0, 22.0, 34.0, 50.0, 70.0, 95.0, 125.0, 160.0, 200.0, 250.0)  # from the point to the label's near edge
_QUARTER = ((1.0, 0.0), (0.92, 0.38), (0.71, 0.71), (0.38, 0.92))
DIRECTIONS = tuple(way for x, y in _QUARTER for way in ((x, y), (y, -x), (-x, -y), (-y, x)))  # right, up, left, down, …
CROSSED = 60.0  # pixels that a label would rather be further away than have its line cross another's, or a point


@dataclass(frozen=True)
class Box:
    """Pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they share any area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Spot:
    """What a label is about: its text, the middle of its point, and the series that the point is of."""

    text: str
    x: float
    y: float
    series: int = 0


@dataclass(frozen=True)
class Label:
    """Lines of text in a box, and where the line from the point meets it; None where it stands beside the point."""

    lines: tuple[str, ...]
    box: Box
    anchor: str  # of the text: "start", "middle" or "end"
    series: int
    spot: tuple[float, float]
    leader: tuple[float, float] | None

    @property
    def x(self) -> float:
        """Where the text is anchored."""
        middle = (self.box.left + self.box.right) / 2
        return {"start": self.box.left, "end": self.box.right}.get(self.anchor, middle)


def place(spots: Sequence[Spot], frame: Box, markers: Sequence[Box]) -> tuple[list[Label], int]:
    """A label for each group of spots, inside the frame; and how many groups found no room for theirs."""
    groups = _groups(spots)
    crowd = [
        sum(math.hypot(s.x - o.x, s.y - o.y) < 90 for o in spots) + 3 * len(_wrapped(group))
        for group in groups
        for s in group[:1]
    ]
    order = sorted(
        range(len(groups)), key=lambda at: (-crowd[at], groups[at][0].y, groups[at][0].x, groups[at][0].text)
    )
    placed: list[Label] = []
    for index in order:
        best = _best(groups[index], frame, markers, placed)
        if best is not None:
            placed.append(best)
    return placed, len(groups) - len(placed)


def _groups(spots: Sequence[Spot]) -> list[list[Spot]]:
    """Spots of one series that nearly coincide, together."""
    groups: list[list[Spot]] = []
    for spot in spots:
        for group in groups:
            first = group[0]
            if first.series == spot.series and abs(first.x - spot.x) < NEAR and abs(first.y - spot.y) < NEAR:
                group.append(spot)
                break
        else:
            groups.append([spot])
    return groups


def _wrapped(group: Sequence[Spot]) -> tuple[str, ...]:
    lines = [""]
    texts = [spot.text for spot in group]
    for index, text in enumerate(texts):
        piece = text + ("," if index + 1 < len(texts) else "")
        if lines[-1] and len(lines[-1]) + 1 + len(piece) > CHARACTERS:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + piece
    return tuple(lines)


def _best(group: Sequence[Spot], frame: Box, markers: Sequence[Box], placed: Sequence[Label]) -> Label | None:
    lines = _wrapped(group)
    width, height = CHARACTER * max(map(len, lines)), LINE * len(lines)
    found: tuple[float, Label] | None = None
    for reach in REACH:
        if found is not None and found[0] <= reach:
            break  # what is further away cannot be better
        for way in DIRECTIONS:
            label = _at(group, lines, way, reach, width, height)
            if not _inside(label.box, frame) or any(label.box.meets(box) for box in markers):
                continue
            if any(label.box.meets(other.box) for other in placed):
                continue
            cost = reach
            if label.leader is not None:
                if any(_cuts(label.spot, label.leader, other.box) for other in placed):
                    continue
                cost += CROSSED * sum(_crosses(label, other) for other in placed)
                own = Box(label.spot[0] - NEAR, label.spot[1] - NEAR, label.spot[0] + NEAR, label.spot[1] + NEAR)
                others = [box for box in markers if not box.meets(own)]
                cost += CROSSED * sum(_cuts(label.spot, label.leader, box) for box in others)
            if any(other.leader and _cuts(other.spot, other.leader, label.box) for other in placed):
                continue
            if found is None or cost < found[0]:
                found = (cost, label)
    return found[1] if found else None


def _at(
    group: Sequence[Spot], lines: tuple[str, ...], way: tuple[float, float], reach: float, width: float, height: float
) -> Label:
    spot = group[0]
    x, y = spot.x + way[0] * reach, spot.y + way[1] * reach
    side = 1 if way[0] > 0.3 else -1 if way[0] < -0.3 else 0
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    top = y - height / 2 if abs(way[1]) < 0.3 else y if way[1] > 0 else y - height
    leader = (x, y) if reach > REACH[1] else None
    box = Box(left, top, left + width, top + height)
    return Label(lines, box, ("middle", "start", "end")[side], spot.series, (spot.x, spot.y), leader)


def _inside(box: Box, frame: Box) -> bool:
    return box.left >= frame.left and box.right <= frame.right and box.top >= frame.top and box.bottom <= frame.bottom


def _crosses(a: Label, b: Label) -> bool:
    return a.leader is not None and b.leader is not None and _intersect(a.spot, a.leader, b.spot, b.leader)


Point = tuple[float, float]


def _intersect(a: Point, b: Point, c: Point, d: Point) -> bool:
    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _cuts(a: Point, b: Point, box: Box) -> bool:
    """Whether the line from a to b passes through the box."""
    if box.left < b[0] < box.right and box.top < b[1] < box.bottom:
        return True
    corners = ((box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom))
    return any(_intersect(a, b, corners[i], corners[(i + 1) % 4]) for i in range(4))
