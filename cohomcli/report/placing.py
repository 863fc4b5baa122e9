"""Names beside points of a plot, placed so that they cover neither each other nor the points and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from cohomcli.report.style import RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 7.5  # points
_STEP = 5.0  # points between the places where a line is looked at
_FAR = 17.0  # points from which on a thin line joins a name to its point
# Offsets in points, nearest first; sideways counts half as far again, because text is wide.
_SHIFTS = tuple(
    sorted(
        (
            (float(dx), float(dy))
            for dy in (0, 10, -10, 18, -18, 28, -28, 40, -40, 54, -54, 70, -70)
            for dx in (8, -8, 0, 24, -24, 48, -48)
            if dx or dy
        ),
        key=lambda shift: math.hypot(1.5 * shift[0], shift[1]),
    )
)


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, frame: Box) -> float:
        """How far it reaches out of a frame, summed over the four sides."""
        beyond = (frame.left - self.left, self.right - frame.right, frame.bottom - self.bottom, self.top - frame.top)
        return sum(max(distance, 0.0) for distance in beyond)


def place_labels(
    axes: Axes, labels: Sequence[Label], lines: Sequence[Sequence[tuple[float, float]]] = (), margin: float = 0.0
) -> list[Box]:
    """Writes every label beside its point; returns the boxes taken. The limits of the axes must be set already.

    `lines` are polylines in data coordinates to keep clear of, `margin` inches right of the axes may be used as well.
    Sizes of texts are estimated from their lengths, so that equal input gives an equal picture.
    """
    pixel = axes.figure.dpi / 72.0
    spots = [_pixels(axes, label.x, label.y) for label in labels]
    taken = [_around(x, y, 4 * pixel) for x, y in spots]
    taken += [_around(x, y, 2 * pixel) for line in lines for x, y in _walk(axes, line, _STEP * pixel)]
    frame = Box(axes.bbox.x0, axes.bbox.y0, axes.bbox.x1 + margin * axes.figure.dpi, axes.bbox.y1)
    placed: list[Box] = []
    for at, (spot, label) in enumerate(zip(spots, labels, strict=True)):
        obstacles = [*taken[:at], *taken[at + 1 :]]
        boxes = {shift: _text_box(spot, shift, label.text, pixel) for shift in _SHIFTS}
        costs = {
            shift: sum(map(box.overlap, obstacles)) + 9 * sum(map(box.overlap, placed)) + 50 * box.outside(frame)
            for shift, box in boxes.items()
        }
        shift = min(_SHIFTS, key=lambda s: costs[s])
        placed.append(boxes[shift])
        _write(axes, label, shift)
    return placed


def merged(axes: Axes, labels: Sequence[Label], reach: float = 6.0) -> list[Label]:
    """Labels whose points lie within `reach` points of the first of them made one, with a line for each name."""
    near = reach * axes.figure.dpi / 72.0
    groups: list[list[Label]] = []
    for label in labels:
        x, y = _pixels(axes, label.x, label.y)
        for group in groups:
            first = _pixels(axes, group[0].x, group[0].y)
            if math.hypot(first[0] - x, first[1] - y) <= near:
                group.append(label)
                break
        else:
            groups.append([label])
    return [replace(group[0], text="\n".join(label.text for label in group)) for group in groups]


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    px, py = axes.transData.transform((x, y))
    return float(px), float(py)


def _around(x: float, y: float, reach: float) -> Box:
    return Box(x - reach, y - reach, x + reach, y + reach)


def _walk(axes: Axes, line: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Points along a polyline at most `step` pixels apart."""
    corners = [_pixels(axes, x, y) for x, y in line]
    points = corners[:1]
    for (ax, ay), (bx, by) in pairwise(corners):
        parts = max(1, math.ceil(math.hypot(bx - ax, by - ay) / step))
        points += [(ax + (bx - ax) * k / parts, ay + (by - ay) * k / parts) for k in range(1, parts + 1)]
    return points


def _text_box(spot: tuple[float, float], shift: tuple[float, float], text: str, pixel: float) -> Box:
    lines = text.split("\n")
    width, height = 0.6 * _SIZE * max(map(len, lines)) * pixel, 1.3 * _SIZE * len(lines) * pixel
    x, y = spot[0] + shift[0] * pixel, spot[1] + shift[1] * pixel
    left = x if shift[0] > 0 else x - width if shift[0] < 0 else x - width / 2
    return Box(left, y - height / 2, left + width, y + height / 2)


def _write(axes: Axes, label: Label, shift: tuple[float, float]) -> None:
    joined = {"arrowstyle": "-", "lw": 0.5, "color": RULE} if math.hypot(*shift) > _FAR else None
    axes.annotate(
        label.text,
        (label.x, label.y),
        shift,
        textcoords="offset points",
        ha="left" if shift[0] > 0 else "right" if shift[0] < 0 else "center",
        va="center",
        multialignment="left" if shift[0] > 0 else "right" if shift[0] < 0 else "center",
        fontsize=_SIZE,
        color=label.colour,
        annotation_clip=False,
        arrowprops=joined,
        zorder=6,
    )
