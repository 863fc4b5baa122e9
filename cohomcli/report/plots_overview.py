"""The overview: what six figures of every layer do over depth, on one common depth axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cohomcli.report.axes import Curve, Scale, depth_axis, draw_curves, say
from cohomcli.report.depth import Depth, depth_of
from cohomcli.report.layers import SUBSCRIPT, betti_of, dimensions_of, summary_of
from cohomcli.report.names import tick
from cohomcli.report.style import DIMENSION, NORM, SCALE, Frame, dimension_colours, new_figure
from cohomcli.topology.results import Array, DimensionSummary, LayerTopology, TopologyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_ROWS = 96
"""Filtration values per column of the Betti picture."""


def draw_overview(title: str, topology: TopologyResult) -> Figure:
    """Six panels: persistence raw and scale-free, size of the cloud, entropy, beta_1 over the filtration, the cloud."""
    depth = depth_of(topology.layers)
    dimensions = dimensions_of(topology.layers)
    figure, panels = new_figure(title, (2, 3), (2.75, 1.95), Frame(right=0.85, across=1.0, left=0.5))
    for axes in panels:
        depth_axis(axes, depth, room=9)
    _per_dimension(panels[0], depth, dimensions, "a  Total persistence, raw", lambda s: s.total_persistence)
    _per_dimension(panels[1], depth, dimensions, "b  Total persistence / scale", lambda s: s.total_over_scale)
    _size(panels[2], depth)
    _per_dimension(panels[3], depth, dimensions, "d  Persistence entropy (nats)", lambda s: s.entropy)
    _betti_picture(panels[4], depth)
    _cloud(panels[5], depth)
    return figure


def _per_dimension(
    axes: Axes, depth: Depth, dimensions: list[int], title: str, figure: Callable[[DimensionSummary], float]
) -> None:
    """One curve per homology dimension."""

    def curve(dimension: int) -> Curve:
        def value(layer: LayerTopology) -> float | None:
            summary = summary_of(layer, dimension)
            return None if summary is None else figure(summary)

        return Curve(f"H{SUBSCRIPT[dimension]}", DIMENSION[dimension], value)

    axes.set_title(title)
    scale: Scale = "linear" if "entropy" in title else "auto"
    draw_curves(axes, [(track, curve(dimension)) for dimension in dimensions for track in depth.streams], scale)


def _size(axes: Axes, depth: Depth) -> None:
    axes.set_title("c  Mean norm, mean distance (scale)")
    curves = (
        Curve("distance", SCALE, lambda layer: layer.scale),
        Curve("norm", NORM, lambda layer: layer.mean_norm),
    )
    draw_curves(axes, [(track, curve) for curve in curves for track in depth.streams], scale="log")


def _cloud(axes: Axes, depth: Depth) -> None:
    axes.set_title("f  Distinct points, variance kept (%)")
    curves = (
        Curve("distinct", SCALE, lambda layer: 100 * layer.n_distinct / layer.n_points),
        Curve("variance", DIMENSION[2], lambda layer: 100 * layer.explained_variance),
    )
    draw_curves(axes, [(track, curve) for curve in curves for track in depth.streams], scale="linear")
    axes.set_ylim(0, 108)


def _betti_picture(axes: Axes, depth: Depth) -> None:
    """beta_1 as colour: depth to the right, filtration value in units of each layer's scale upwards."""
    from matplotlib.ticker import FuncFormatter

    axes.set_title("e  Betti curve β₁ (bars alive)")
    axes.grid(False)
    columns = {
        at: (layer, curve)
        for track in depth.streams
        for at, layer in zip(track.positions, track.layers, strict=True)
        if layer.scale > 0 and (curve := betti_of(layer, 1)) is not None and curve.max(initial=0) > 0
    }
    if not columns:
        say(axes, "no H₁ bar in any layer")
        axes.set_yticks([])
        return
    top = max(float(layer.betti.grid[curve > 0].max()) / layer.scale for layer, curve in columns.values()) * 1.04
    heights = np.linspace(0.0, top, _ROWS)
    image = np.full((_ROWS, len(depth.stops)), np.nan)
    for at, (layer, curve) in columns.items():
        image[:, at] = _step(layer.betti.grid / layer.scale, curve, heights)
    edges = np.arange(len(depth.stops) + 1) - 0.5
    mesh = axes.pcolormesh(edges, np.linspace(0, top, _ROWS + 1), image, cmap=dimension_colours(1), vmin=0, zorder=1)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_ylabel("distance / scale", labelpad=2)
    _colour_bar(axes, mesh)


def _step(grid: Array, values: np.ndarray, at: Array) -> Array:
    """The step function through (grid, values), read at `at`; zero before the first grid value."""
    places = np.searchsorted(grid, at, side="right") - 1
    return np.where(places < 0, 0.0, values[np.clip(places, 0, None)].astype(float))


def _colour_bar(axes: Axes, mesh: ScalarMappable) -> None:
    """A slim bar beside the panel, in the margin where the other panels have their labels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    place = axes.inset_axes((1.04, 0.0, 0.045, 1.0))
    bar = axes.figure.colorbar(mesh, cax=place, format=FuncFormatter(lambda value, _: tick(value)))
    bar.locator = MaxNLocator(5, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
    place.grid(False)
    place.tick_params(length=0)
