"""The layer profile: total persistence of every dimension over depth, raw and scale-free side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.report.axes import Curve, depth_axis, draw_curves, mark_peak, say
from cohomcli.report.depth import Depth, Track, depth_of
from cohomcli.report.layers import SUBSCRIPT, dimensions_of, summary_of
from cohomcli.report.style import DIMENSION, INK, MUTED, Frame, new_figure
from cohomcli.topology.results import LayerTopology, TopologyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SITE_LABEL = {"block": "block output", "attention": "attention", "mlp": "MLP"}
_SITE_COLOUR = {"block": INK, "attention": MUTED, "mlp": "#8A6D00"}


def draw_profile(title: str, topology: TopologyResult) -> Figure:
    """One row per homology dimension: raw total persistence on the left, divided by the layer's scale on the right."""
    dimensions = dimensions_of(topology.layers)
    depth = depth_of(topology.layers)
    several = len({track.site for track in depth.tracks}) > 1
    frame = Frame(right=0.95, across=1.3) if several else Frame()
    figure, panels = new_figure(title, (len(dimensions), 2), (4.3, 1.85), frame)
    for at, axes in enumerate(panels):
        _panel(axes, depth, dimensions[at // 2], free=at % 2 == 1)
    return figure


def _panel(axes: Axes, depth: Depth, dimension: int, free: bool) -> None:
    def value(layer: LayerTopology) -> float | None:
        summary = summary_of(layer, dimension)
        return None if summary is None else summary.total_over_scale if free else summary.total_persistence

    axes.set_title(f"H{SUBSCRIPT[dimension]} total persistence{' / mean pairwise distance' if free else ', raw'}")
    depth_axis(axes, depth, room=14)
    several = len({track.site for track in depth.tracks}) > 1
    lines = []
    for track in depth.tracks:
        colour = DIMENSION[dimension] if track in depth.streams else _SITE_COLOUR[track.site]
        label = _SITE_LABEL[track.site] if several else ""
        lines.append((track, Curve(label, colour, value, dotted=track.site == "mlp")))
    drawn = draw_curves(axes, lines)
    for track, curve in lines:
        _limits(axes, track, dimension, free, curve.colour)
    if not any(height for _, _, height in drawn):
        say(axes, f"no finite H{SUBSCRIPT[dimension]} bar in any layer")
    mark_peak(axes, drawn, DIMENSION[dimension])


def _limits(axes: Axes, track: Track, dimension: int, free: bool, colour: str) -> None:
    """The 95% confidence limits of every layer that has them, as one bar each: layers are no points of a line."""
    name = "total_over_scale" if free else "total_persistence"
    for at, layer in zip(track.positions, track.layers, strict=True):
        summary = summary_of(layer, dimension)
        if summary is not None and summary.intervals and name in summary.intervals:
            low, high = summary.intervals[name]
            axes.fill_between([at - 0.28, at + 0.28], low, high, color=colour, alpha=0.22, linewidth=0, zorder=1)
            axes.set_ylim(top=max(axes.get_ylim()[1], 1.04 * high))
