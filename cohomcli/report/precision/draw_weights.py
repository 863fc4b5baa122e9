"""The picture of a weight-only analysis: bytes by format, and the rounding error of every tensor in every format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.precision.result import WeightsResult
from cohomcli.report.axes import say, set_scale
from cohomcli.report.names import percent, size
from cohomcli.report.precision.look import colour_of, in_order
from cohomcli.report.style import INK, Frame, glyphs, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_weights(title: str, result: WeightsResult) -> Figure:
    """Two panels: bytes on the left, errors in the tensors' order on the right."""
    frame = Frame(left=0.9, right=0.75, top=0.6, across=1.9)
    figure, (sizes, errors) = new_figure(title, (1, 2), (2.8, 2.3), frame)
    _sizes(sizes, result)
    _errors(errors, result)
    return figure


def _sizes(axes: Axes, result: WeightsResult) -> None:
    axes.set_title("Bytes of the weights by format")
    formats = in_order(result.bytes_by_format)
    rows = [("as stored", result.bytes_stored, "#44525f")]
    rows += [(glyphs(f, 12), result.bytes_by_format[f], colour_of(f)) for f in formats]
    axes.grid(False)
    for at, (_, n, colour) in enumerate(rows):
        axes.barh(at, n, height=0.7, color=colour)
        share = f", {percent(n / result.bytes_stored)}" if result.bytes_stored and at else ""
        axes.annotate(f"{size(n)}{share}", (n, at), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_xticks([])
    axes.set_xlim(0, max(n for _, n, _ in rows) or 1)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _errors(axes: Axes, result: WeightsResult) -> None:
    axes.set_title("Relative rounding error of every tensor")
    drawn: list[float] = []
    ends = []
    for fmt in in_order(result.formats):
        points = [(at, row.errors[fmt]) for at, row in enumerate(result.weights) if fmt in row.errors]
        if not points or not any(error for _, error in points):
            continue
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, "o", ms=3 if len(xs) < 150 else 1.8, color=colour_of(fmt), mec=INK, mew=0.25, clip_on=False)
        drawn += ys
        ends.append((ys[-1], glyphs(fmt, 12)))
    axes.set_xlim(-0.5, max(len(result.weights), 1) - 0.5)
    if not drawn:
        say(axes, "no format changes a weight")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    set_scale(axes, drawn, "log")
    axes.set_xlabel("tensors in file order", labelpad=2)
    _names(axes, ends)


def _names(axes: Axes, ends: list[tuple[float, str]]) -> None:
    from cohomcli.report.axes import label_ends

    label_ends(axes, [(value, name, INK) for value, name in ends])
