"""Persistence diagrams and barcodes, one panel per layer, at most twelve panels to a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from cohomcli.report.axes import say
from cohomcli.report.depth import short_name
from cohomcli.report.layers import SUBSCRIPT, diagram_of, dimensions_of, summary_of
from cohomcli.report.names import tick
from cohomcli.report.style import DIMENSION, MUTED, RULE, Frame, glyphs, new_figure
from cohomcli.topology.results import Array, Diagram, LayerTopology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_PAGE = 12
MOST_BARS = 30
"""Bars drawn per layer and dimension; the longest are kept and the panel says how many there are."""
SHARED_SPREAD = 3.0
"""Panels share their axes unless the widest layer needs more than this many times the median layer's range."""


@dataclass(frozen=True)
class Page:
    """Some layers of one model, drawn on one figure. `limits` are the panels' axis ends in units of their scale."""

    layers: tuple[LayerTopology, ...]
    limits: tuple[float, ...]
    shared: bool


def pages(layers: Sequence[LayerTopology]) -> list[Page]:
    """Splits layers into pages: first an even choice with both ends and the peaks, then the rest in order."""
    reach = [_reach(layer) for layer in layers]
    shared = max(reach) <= SHARED_SPREAD * median(reach)
    limits = [1.06 * (max(reach) if shared else own) for own in reach]
    first = _representative(layers) if len(layers) > PER_PAGE else list(range(len(layers)))
    rest = [i for i in range(len(layers)) if i not in first]
    groups = [first, *(rest[k : k + PER_PAGE] for k in range(0, len(rest), PER_PAGE))]
    return [Page(tuple(layers[i] for i in g), tuple(limits[i] for i in g), shared) for g in groups if g]


def _representative(layers: Sequence[LayerTopology]) -> list[int]:
    """Twelve indices: evenly spaced, with the first, the last, and the layer of the largest raw total per dimension."""
    chosen = [round(k * (len(layers) - 1) / (PER_PAGE - 1)) for k in range(PER_PAGE)]
    fixed = {0, len(layers) - 1}
    for dimension in dimensions_of(layers):
        totals = [s.total_persistence if (s := summary_of(layer, dimension)) else 0.0 for layer in layers]
        peak = totals.index(max(totals))
        if peak not in chosen:
            free = [i for i in chosen if i not in fixed]
            chosen[chosen.index(min(free, key=lambda i: abs(i - peak)))] = peak
        fixed.add(peak)
    return sorted(chosen)


def _reach(layer: LayerTopology) -> float:
    """The largest finite birth or death of a layer in units of its scale; 1 for a layer without any."""
    ends = [float(part.max(initial=0.0)) for d in layer.diagrams for part in (d.pairs, d.essential, d.censored)]
    largest = max(ends, default=0.0)
    return largest / layer.scale if layer.scale > 0 and largest > 0 else 1.0


def draw_diagrams(title: str, page: Page) -> Figure:
    """Birth against death in units of each layer's scale; classes that never die stand on the line at infinity."""
    figure, panels = _grid(title, page, (2.15, 2.15))
    _legend(figure, page.layers, "^")
    for axes, layer, limit in zip(panels, page.layers, page.limits, strict=False):
        _diagram_panel(axes, layer, limit)
    _ticks_and_labels(figure, panels, page, "birth / scale", "death / scale")
    return figure


def _diagram_panel(axes: Axes, layer: LayerTopology, limit: float) -> None:
    infinity = 1.1 * limit
    axes.set_xlim(-0.035 * limit, limit)
    axes.set_ylim(-0.035 * limit, 1.17 * limit)
    axes.grid(False)
    loops = diagram_of(layer, 1)
    _panel_title(axes, layer, "" if loops is None else f"{len(loops.pairs):,} in H₁", DIMENSION[1])
    if not layer.scale > 0:
        say(axes, _no_shape(layer))
        return
    axes.plot([0, limit], [0, limit], color=RULE, linewidth=0.8, zorder=1)
    axes.plot([0, limit], [infinity, infinity], color=RULE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for diagram in layer.diagrams:
        colour = DIMENSION[diagram.dimension]
        style: dict[str, Any] = {"linestyle": "none", "color": colour, "markeredgewidth": 0, "clip_on": False}
        births, deaths = diagram.pairs.T / layer.scale
        axes.plot(births, deaths, marker="o", markersize=3.4, alpha=0.55, zorder=3 + diagram.dimension, **style)
        for births, fill in ((diagram.essential, colour), (diagram.censored, "white")):
            height = np.full(len(births), infinity)
            style = {"linestyle": "none", "color": colour, "markerfacecolor": fill, "clip_on": False, "zorder": 6}
            axes.plot(births / layer.scale, height, marker="^", markersize=5, **style)


def _no_shape(layer: LayerTopology) -> str:
    return "all points\ncoincide" if layer.n_points > 1 else "one point"


def draw_barcodes(title: str, page: Page) -> Figure:
    """Every bar from birth to death in units of each layer's scale, H0 below H1; the longest if there are many."""
    figure, panels = _grid(title, page, (2.15, 1.95))
    _legend(figure, page.layers, ">")
    for axes, layer, limit in zip(panels, page.layers, page.limits, strict=False):
        _barcode_panel(axes, layer, limit)
    _ticks_and_labels(figure, panels, page, "distance / scale", "")
    return figure


def _barcode_panel(axes: Axes, layer: LayerTopology, limit: float) -> None:
    from matplotlib.collections import LineCollection

    axes.set_xlim(0, 1.1 * limit)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    shown, total = bars_shown(layer)
    _panel_title(axes, layer, f"{shown} of {total:,}" if shown < total else f"all {total}", MUTED)
    if not layer.scale > 0:
        say(axes, _no_shape(layer))
        return
    height = 0
    for diagram in layer.diagrams:
        bars, ends = _longest(diagram, 1.1 * limit * layer.scale)
        segments = [[(birth, height + k), (death, height + k)] for k, (birth, death) in enumerate(bars / layer.scale)]
        axes.add_collection(LineCollection(segments, colors=DIMENSION[diagram.dimension], linewidths=1.3))
        colour = DIMENSION[diagram.dimension]
        fill = colour if len(diagram.essential) else "white"
        for k in np.flatnonzero(ends):
            style: dict[str, Any] = {"color": colour, "markerfacecolor": fill, "markersize": 4, "clip_on": False}
            axes.plot(1.1 * limit, height + k, ">", **style)
        height += len(bars) + 3 if len(bars) else 0
    axes.set_ylim(-2, max(height - 2, 3))


def _longest(diagram: Diagram, end: float) -> tuple[Array, np.ndarray]:
    """The longest bars sorted by birth, then death, as (k, 2), and which of them go on beyond the plot's `end`."""
    alive = np.concatenate([diagram.essential, diagram.censored])
    bars = np.concatenate([diagram.pairs, np.column_stack([alive, np.full(len(alive), end)])])
    ends = np.arange(len(bars)) >= len(diagram.pairs)
    lengths = np.where(ends, np.inf, bars[:, 1] - bars[:, 0])
    kept = np.argsort(-lengths, kind="stable")[:MOST_BARS]
    kept = kept[np.lexsort((bars[kept, 1], bars[kept, 0]))]
    return bars[kept], ends[kept]


def bars_shown(layer: LayerTopology) -> tuple[int, int]:
    """How many bars of a layer its barcode panel shows, and how many there are."""
    sizes = [len(d.pairs) + len(d.essential) + len(d.censored) for d in layer.diagrams]
    return sum(min(size, MOST_BARS) for size in sizes), sum(sizes)


def _grid(title: str, page: Page, panel: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    n = len(page.layers)
    columns = min(4, n) if n != 5 and n != 6 and n != 9 else 3
    rows = -(-n // columns)
    tight = page.shared
    frame = Frame(top=0.82, left=0.5, across=0.2 if tight else 0.42, down=0.42 if tight else 0.55)
    figure, panels = new_figure(title, (rows, columns), panel, frame)
    for axes in panels[n:]:
        axes.set_visible(False)
    return figure, panels


def _panel_title(axes: Axes, layer: LayerTopology, note: str, colour: str) -> None:
    """The layer's name on the left, a short note on the right."""
    axes.set_title(glyphs(short_name(layer.name)), fontsize=8, pad=5)
    axes.annotate(
        note,
        (1, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=7.5,
    )


def _legend(figure: Figure, layers: Sequence[LayerTopology], mark: str) -> None:
    """One legend for the whole page, on its own line below the title."""
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, colour: str, fill: str) -> Line2D:
        return Line2D([], [], color=colour, markerfacecolor=fill, linestyle="none", marker=marker, label=label)

    handles = [handle(f"H{SUBSCRIPT[k]}", "o", DIMENSION[k], DIMENSION[k]) for k in dimensions_of(layers)]
    handles.append(handle("never dies", mark, MUTED, MUTED))
    if any(len(diagram.censored) for layer in layers for diagram in layer.diagrams):
        handles.append(handle("alive at the end", mark, MUTED, "white"))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.27 / figure.get_figheight()),
        ncols=len(handles),
        handletextpad=0.1,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _ticks_and_labels(figure: Figure, panels: Sequence[Axes], page: Page, x: str, y: str) -> None:
    """Numbers on every panel, or only on the outer ones when all panels share their axes; one label per side."""
    from matplotlib.ticker import MaxNLocator

    n = len(page.layers)
    columns = len({round(axes.get_position().x0, 4) for axes in panels})
    for at, (axes, limit) in enumerate(zip(panels, page.limits, strict=False)):
        places = [v for v in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, limit) if 0 <= v <= limit]
        names = [tick(round(v, 10)) for v in places]
        lowest, leftmost = at + columns >= n, at % columns == 0
        axes.set_xticks(places, names if lowest or not page.shared else [""] * len(names))
        axes.set_xlabel(x if lowest else "", labelpad=2)
        if y:
            axes.set_yticks(
                [*places, 1.1 * limit], [*names, "∞"] if leftmost or not page.shared else [""] * (len(names) + 1)
            )
            axes.set_ylabel(y if leftmost else "", labelpad=3)
