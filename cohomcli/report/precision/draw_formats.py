"""The computation graph as a picture: a cell per stored tensor, coloured by format, blocks under each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cohomcli.precision.result import PrecisionResult
from cohomcli.report.names import count
from cohomcli.report.precision.digest import formats_of, obstructed_names, of_kind, shown_obstructions
from cohomcli.report.precision.grid import Column, Panel, layout, skips
from cohomcli.report.precision.look import colour_of, in_order
from cohomcli.report.style import INK, MUTED, blank_figure, glyphs, legend_on_top

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LEAST_WIDTH, _LEFT, _RIGHT = 10.6, 6.6, 1.35, 0.2  # inches
_CELL, _ROW, _LEAST_ROW = 0.2, 0.17, 0.012  # largest cell width and row height, least row height
_GRID_HEIGHT = 7.0  # what all rows of a figure share
_GAP = 0.6  # columns between operations and weights
_ARCS = 0.42  # height of the connections under a panel
_LABEL = 6.3  # points
_PER_INCH = 72.0


def draw_formats(title: str, result: PrecisionResult) -> Figure:
    """All panels of the graph, one under the other, with a legend that counts."""
    panels = layout(result.plan)
    n_rows = sum(len(panel.rows) for panel in panels)
    row = max(min(_ROW, _GRID_HEIGHT / n_rows), _LEAST_ROW)
    plots = [_Plot(panel, row, result) for panel in panels]
    width = max(_LEAST_WIDTH, *(_LEFT + plot.cell * plot.units + _RIGHT for plot in plots))
    entries = _legend_entries(result)
    columns = max(1, int(len(entries) * width / sum(0.55 + 0.075 * len(words) for _, words in entries)))
    top = 0.42 + 0.2 * math.ceil(len(entries) / columns)
    figure = blank_figure(title, width, top + sum(plot.height for plot in plots) + 0.1)
    _legend(figure, entries, columns)
    y = figure.get_figheight() - top
    for plot in plots:
        plot.draw(figure, y)
        y -= plot.height
    return figure


class _Plot:
    """One panel: its size in inches, and how it is drawn below a given height."""

    def __init__(self, panel: Panel, row: float, result: PrecisionResult) -> None:
        self.panel, self.row, self.result = panel, row, result
        self.among_blocks = len(panel.cells) < len(result.plan)
        self.skips = skips(panel, result.edges) if len(panel.rows) > 1 and panel.title else []
        self.has_gap = 0 < panel.n_ops < len(panel.columns)
        self.units = len(panel.columns) + (_GAP if self.has_gap else 0.0)
        self.cell = min(_CELL, (_WIDTH - _LEFT - _RIGHT) / self.units)
        self.labels = _labels(panel.columns, self.cell)
        longest = max((len(text) for _, text in self.labels), default=0)
        self.header = 0.3 + 0.058 * longest
        self.height = self.header + row * len(panel.rows) + (_ARCS if self.skips else 0.0) + 0.12

    def x(self, column: int) -> float:
        """The left edge of a column, in columns."""
        return column + (_GAP if self.has_gap and column >= self.panel.n_ops else 0.0)

    def draw(self, figure: Figure, top: float) -> None:
        width, height = figure.get_figwidth(), figure.get_figheight()
        rows, arcs = len(self.panel.rows), _ARCS / self.row if self.skips else 0.0
        size = (self.cell * self.units / width, self.row * (rows + arcs) / height)
        y = (top - self.header - self.row * (rows + arcs)) / height
        axes = figure.add_axes((_LEFT / width, y, *size))
        axes.set_xlim(0, self.units)
        axes.set_ylim(rows + arcs, 0)
        axes.set_axis_off()
        self._cells(axes)
        self._marks(axes)
        self._rows(axes)
        for column, text in self.labels:
            at = (self.x(column) + 0.5, -0.04 / self.row)
            axes.text(*at, text, rotation=90, ha="center", va="bottom", fontsize=_LABEL, color=INK)
        figure.text(_LEFT / width, (top - 0.06) / height, self._title(), va="top", fontsize=8.5, color=INK)
        self._arcs(axes, rows, arcs)

    def _title(self) -> str:
        if not self.panel.title:
            return "outside of repeated blocks, in forward order" if self.among_blocks else "in forward order"
        weights = len(self.panel.columns) - self.panel.n_ops
        parts = [count(n, name) for n, name in ((self.panel.n_ops, "operation"), (weights, "weight")) if n]
        return f"{glyphs(self.panel.title, 60)}: {count(len(self.panel.rows), 'block')}, {' and '.join(parts)} each"

    def _cells(self, axes: Axes) -> None:
        from matplotlib.collections import PolyCollection

        inset = 0.04 if min(self.cell, self.row) > 0.05 else 0.0
        for fmt in in_order(row.format for row in self.result.plan):
            boxes = [(self.x(c.column), c.row) for c in self.panel.cells if self.result.plan[c.index].format == fmt]
            if boxes:
                low, high = np.array([inset, inset]), np.array([1 - inset, 1 - inset])
                corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
                shapes = np.array(boxes)[:, None, :] + corners[None]
                axes.add_collection(PolyCollection(list(shapes), facecolors=colour_of(fmt), linewidths=0))

    def _marks(self, axes: Axes) -> None:
        names = obstructed_names(self.result)
        plan = self.result.plan
        marked = [c for c in self.panel.cells if (plan[c.index].kind, plan[c.index].op) in names]
        size = max(0.36 * _PER_INCH * min(self.cell, self.row), 0.7)
        points = [(self.x(c.column) + 0.5, c.row + 0.5) for c in marked]
        if points:
            axes.plot(*zip(*points, strict=True), "o", ms=size, mfc="white", mec=INK, mew=0.35 if size > 2 else 0.0)

    def _rows(self, axes: Axes) -> None:
        every = max(1, math.ceil(0.125 / self.row))
        for at, name in enumerate(self.panel.rows):
            fresh = at == 0 or name != self.panel.rows[at - 1]
            if name and at % every == 0 and fresh:
                text = glyphs(".".join(name.split(".")[-2:]), 20)
                axes.text(-0.08 / self.cell, at + 0.5, text, ha="right", va="center", fontsize=6.8, color=INK)

    def _arcs(self, axes: Axes, rows: int, room: float) -> None:
        from matplotlib.collections import LineCollection

        if not self.skips:
            return
        turn = np.linspace(0.0, np.pi, 40)
        longest = max(s.end - s.start for s in self.skips)
        curves = []
        for skip in self.skips:
            a, b = self.x(skip.start) + 0.5 if skip.start >= 0 else 0.0, self.x(skip.end) + 0.5
            depth = 0.9 * room * (skip.end - skip.start) / longest
            xs = (a + b) / 2 - (b - a) / 2 * np.cos(turn)
            curves.append(np.column_stack([xs, rows + 0.03 / self.row + depth * np.sin(turn)]))
        axes.add_collection(LineCollection(curves, colors=MUTED, linewidths=0.8, alpha=0.7))


def _labels(columns: Sequence[Column], cell: float) -> list[tuple[int, str]]:
    """(column, text) of what can be labelled: every column, or the first of each module where columns are narrow."""
    named = [(at, column) for at, column in enumerate(columns) if column.op]
    if cell >= 0.1:
        return [(at, _label(column)) for at, column in named]
    shown: list[tuple[int, str]] = []
    last: tuple[str, bool] | None = None
    for at, column in named:
        fresh = (column.module, column.weight) != last
        last = (column.module, column.weight)
        if fresh and (not shown or (at - shown[-1][0]) * cell >= 0.1):
            shown.append((at, _label(column)))
    return shown


def _label(column: Column) -> str:
    module = column.module.rpartition(".")[2]
    joined = f"{module}.{column.op}" if column.weight else f"{module} {column.op}"
    return glyphs(joined if module else column.op, 30)


def _legend_entries(result: PrecisionResult) -> list[tuple[str, str]]:
    """(format, words) per format in use, and ("", words) for the mark of obstructed tensors."""
    ops, weights = formats_of(of_kind(result.plan, "op")), formats_of(of_kind(result.plan, "weight"))
    entries = []
    for fmt in in_order([*ops, *weights]):
        parts = [count(n, name) for n, name in ((ops[fmt], "operation"), (weights[fmt], "weight")) if n]
        entries.append((fmt, f"{glyphs(fmt, 12)}: {', '.join(parts)}"))
    sets = {found.format: len(shown_obstructions(found)) for found in result.obstructions}
    refused = ", ".join(f"{glyphs(fmt, 12)} at {n:,}" for fmt, n in sets.items() if n)
    return [*entries, ("", f"inadmissible: {refused}")] if refused else entries


def _legend(figure: Figure, entries: Sequence[tuple[str, str]], columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour_of(fmt), label=words)
        if fmt
        else Line2D([], [], ls="none", marker="o", ms=4, mfc="white", mec=INK, mew=0.6, label=words)
        for fmt, words in entries
    ]
    legend_on_top(figure, handles, columns)
