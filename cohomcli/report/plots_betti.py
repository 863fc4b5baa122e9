"""True Betti curves: the classes alive at each filtration value, with their confidence limits as pale bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cohomcli.report.axes import say
from cohomcli.report.depth import Depth, Stop, depth_of, labelled
from cohomcli.report.layers import SUBSCRIPT, betti_of, dimensions_of
from cohomcli.report.names import tick
from cohomcli.report.style import INK, Frame, depth_colours, glyphs, new_figure
from cohomcli.topology.results import LayerTopology, TopologyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PALE = 0.28
"""Opacity of confidence limits."""

_SITE = {"block": "", "attention": ", attention", "mlp": ", MLP"}

Placed = Sequence[tuple[int, LayerTopology]]
Drawn = Sequence[tuple[int, LayerTopology, NDArray[np.int64]]]


def draw_betti(title: str, topology: TopologyResult) -> Figure:
    """One row of panels per kind of layer: beta_0 of all layers in one panel, higher Betti numbers as ridges.

    Colour is depth throughout. The curves of H1 of thirty layers cross far too often to share one baseline.
    """
    depth = depth_of(topology.layers)
    dimensions = dimensions_of(topology.layers)
    sites = list(dict.fromkeys(track.site for track in depth.tracks))
    height = 2.6 + 0.06 * min(len(depth.stops), 60)
    figure, panels = new_figure(
        title,
        (len(sites), len(dimensions)),
        (4.0 if len(dimensions) < 3 else 2.6, height),
        Frame(across=1.2, right=0.75),
    )
    for at, axes in enumerate(panels):
        site, dimension = sites[at // len(dimensions)], dimensions[at % len(dimensions)]
        placed = [
            (position, layer)
            for track in depth.tracks
            if track.site == site
            for position, layer in zip(track.positions, track.layers, strict=True)
        ]
        axes.set_title(f"β{SUBSCRIPT[dimension]}: classes of H{SUBSCRIPT[dimension]} alive{_SITE[site]}")
        _panel(axes, placed, dimension, depth.stops)
        if dimension == 0:
            _depth_bar(axes, depth)
    return figure


def _panel(axes: Axes, placed: Placed, dimension: int, stops: Sequence[Stop]) -> None:
    from matplotlib.ticker import FuncFormatter

    drawn = [
        (at, layer, curve)
        for at, layer in placed
        if layer.scale > 0 and (curve := betti_of(layer, dimension)) is not None
    ]
    axes.set_xlabel("distance / scale", labelpad=2)
    if not any(curve.any() for _, _, curve in drawn):
        say(axes, f"no H{SUBSCRIPT[dimension]} bar in any layer")
        axes.set_yticks([])
        return
    # The essential class keeps beta_0 at 1 for ever: the axis ends where the last curve stops changing.
    ends = [
        layer.betti.grid[(curve != curve[-1]).nonzero()[0].max(initial=0)] / layer.scale for _, layer, curve in drawn
    ]
    axes.set_xlim(0, 1.06 * float(max(ends)) or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    tallest = max(int(curve.max()) for _, _, curve in drawn)
    if dimension == 0:
        _overlay(axes, drawn, tallest, len(stops))
    else:
        _ridges(axes, drawn, dimension, tallest, stops)


def _overlay(axes: Axes, drawn: Drawn, tallest: int, n: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    colours = depth_colours()
    ends = (drawn[0][0], drawn[-1][0])  # the bands of all layers on top of each other would show nothing
    for at, layer, curve in drawn:
        start = layer.name.endswith("embedding")
        if (band := limits_of(layer, 0)) is not None and at in ends:
            colour = INK if start else colours(_share(at, n))
            x = layer.betti.grid / layer.scale
            axes.fill_between(x, *band, step="post", color=colour, alpha=_PALE, linewidth=0, zorder=1)
        style = {"linestyle": (0, (3, 1.5)), "color": INK, "zorder": 3} if start else {"color": colours(_share(at, n))}
        axes.step(layer.betti.grid / layer.scale, curve, where="post", linewidth=1.1, **style)
    axes.set_ylim(0, 1.06 * tallest)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _ridges(axes: Axes, drawn: Drawn, dimension: int, tallest: int, stops: Sequence[Stop]) -> None:
    """One filled step function per layer on its own baseline, the embedding at the bottom, all to one scale."""
    colours = depth_colours()
    # The tallest ridge in rows: with many layers ridges must reach into the rows above to be seen at all.
    overlap = 0.9 if len(stops) <= 6 else 1.5 if len(stops) <= 14 else 2.4
    for at, layer, curve in drawn:
        heights = at + overlap * curve / tallest
        colour = colours(_share(at, len(stops)))
        order = 2 + 2 * (len(stops) - at)
        x = layer.betti.grid / layer.scale
        axes.fill_between(x, at, heights, step="post", color=colour, alpha=0.75, linewidth=0, zorder=order)
        if (band := limits_of(layer, dimension)) is not None:
            low, high = (at + overlap * edge / tallest for edge in band)
            axes.fill_between(x, low, high, step="post", color=colour, alpha=_PALE, linewidth=0, zorder=order)
            axes.step(x, high, where="post", color=colour, linewidth=0.4, zorder=order)
        above = np.where(curve > 0, heights, np.nan)
        axes.step(x, above, where="post", color="white", linewidth=0.5, zorder=order + 1)
        axes.hlines(at, *axes.get_xlim(), color=colour, linewidth=0.5, zorder=order + 1)
    axes.grid(False)
    shown = labelled(stops, 16)
    axes.set_yticks(shown, [glyphs(stops[i].label) for i in shown])
    if any(stop.role == "block" for stop in stops):
        axes.set_ylabel("block", labelpad=2)
    tops = [(at, curve, limits_of(layer, dimension)) for at, layer, curve in drawn]
    top = max(at + overlap * max(curve.max(), band[1].max() if band else 0) / tallest for at, curve, band in tops)
    axes.set_ylim(drawn[0][0] - 0.3, max(top, drawn[-1][0]) + 0.4)
    most = f"highest value: {tallest:,}"
    axes.annotate(most, (1, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=8)


def limits_of(layer: LayerTopology, dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The pointwise confidence limits of a layer's Betti curve, where it has any."""
    low, high = layer.betti.low, layer.betti.high
    if low is None or high is None or dimension >= len(low):
        return None
    return low[dimension], high[dimension]


def _share(at: int, n: int) -> float:
    return at / max(n - 1, 1)


def _depth_bar(axes: Axes, depth: Depth) -> None:
    """The colour of every depth, with the depth axis' own labels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    n = len(depth.stops)
    place = axes.inset_axes((1.04, 0.0, 0.04, 1.0))
    norm = BoundaryNorm([k - 0.5 for k in range(n + 1)], n)
    bar = axes.figure.colorbar(ScalarMappable(norm, depth_colours().resampled(n)), cax=place)
    shown = labelled(depth.stops, 16)
    bar.set_ticks(shown, labels=[glyphs(depth.stops[i].label) for i in shown])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    place.grid(False)
    place.tick_params(length=0)
