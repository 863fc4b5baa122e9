"""Drift over the layers, and distances between models as a matrix and as a map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cohomcli.report.comparing import labels_of
from cohomcli.report.depth import short_name
from cohomcli.report.drifting import shown_drift
from cohomcli.report.names import clean, count, listing, number, tick
from cohomcli.report.picture import Picture
from cohomcli.report.placing import Label, merged, place_labels
from cohomcli.report.style import INK, MARKERS, MODELS, RULE, Frame, blank_figure, glyphs, legend_on_top, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.drift import DriftReport, ModelDrift
    from cohomcli.topology.maps import ModelMap

MOST_LINES = 14
NUMBERS_UP_TO = 10
"""Rows up to which the matrix carries its numbers."""


def drift_pictures(comparison: Comparison) -> list[Picture]:
    """The figures of drift and distance, not yet drawn; none where nothing was measured."""
    labels = labels_of(comparison.rows)
    drift, pictures = shown_drift(comparison), []
    if drift is not None and any(model.layers for model in drift.models):
        pictures.append(_drift_picture(drift, labels))
    if comparison.map is not None and any(v for row in comparison.map.values for v in row):
        pictures.append(_map_picture(comparison.map, labels))
    return pictures


def _drift_picture(drift: DriftReport, labels: Sequence[str]) -> Picture:
    known = [model for model in drift.models if model.max_drift is not None]
    worst = [
        f"{labels[model.row]} at most {number(model.max_drift, 3)} in {clean(model.worst_layer or '', 30)}"
        for model in known
    ]
    start = listing(labels[row] for row in drift.baselines)
    return Picture(
        file="drift.png",
        group="compare",
        title="Drift of every layer",
        alt=f"Drift of every layer from {start}: {listing(worst) or 'incomplete'}.",
        caption=(
            f"How far each layer has moved from the same layer of {start}, by {clean(drift.measure, 40)} between "
            f"{drift.measured_on} on the same texts: 0 is equal, 1 is unrelated."
            + (" Right: from each checkpoint to the next." if len(drift.steps) > 1 else "")
        ),
        draw=partial(draw_drift, drift, tuple(labels)),
    )


def draw_drift(drift: DriftReport, labels: Sequence[str]) -> Figure:
    """One line per model over its layers; with checkpoints a second panel from each to the next."""
    panels = [(drift.models, f"from {listing(labels[row] for row in drift.baselines)}")]
    if len(drift.steps) > 1:
        panels.append((drift.steps, "from the checkpoint before"))
    rows = sorted({model.row for models, _ in panels for model in models if model.layers})
    legend_rows = -(-len(rows) // 3)
    frame = Frame(top=0.62 + 0.19 * legend_rows, left=0.6, across=0.75, bottom=0.75)
    figure, axes = new_figure("Drift of every layer", (1, len(panels)), (8.6 if len(panels) == 1 else 4.2, 2.4), frame)
    top = max((layer.drift for models, _ in panels for model in models for layer in model.layers), default=0.0)
    for panel, (models, title) in zip(axes, panels, strict=True):
        panel.set_title(glyphs(title, 60))
        _lines(panel, models, top)
    handles = [_handle(row, labels[row]) for row in rows[:MOST_LINES]]
    legend_on_top(figure, handles, 3)
    return figure


def _look(row: int) -> tuple[str, str, str]:
    return MODELS[row % len(MODELS)], MARKERS[row % len(MARKERS)], "-" if row < len(MODELS) else "--"


def _handle(row: int, label: str) -> object:
    from matplotlib.lines import Line2D

    colour, marker, line = _look(row)
    return Line2D([], [], color=colour, marker=marker, ls=line, label=glyphs(label, 34))


def _lines(axes: Axes, models: Sequence[ModelDrift], top: float) -> None:
    from matplotlib.ticker import FuncFormatter

    names = list(dict.fromkeys(layer.layer for model in models for layer in model.layers))
    places = {name: at for at, name in enumerate(names)}
    for model in [model for model in models if model.layers][:MOST_LINES]:
        colour, marker, line = _look(model.row)
        at = [places[layer.layer] for layer in model.layers]
        size = 4 if len(names) <= 20 else 2.4
        values = [layer.drift for layer in model.layers]
        axes.plot(at, values, line, color=colour, marker=marker, markersize=size, clip_on=False)
    step = -(-len(names) // 16)
    shown = range(0, len(names), step)
    axes.set_xticks(list(shown), [glyphs(short_name(names[at]), 12) for at in shown])
    if max((len(short_name(names[at])) for at in shown), default=0) > 4:
        axes.tick_params(axis="x", rotation=35)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes.set_ylim(0, min(1.0, 1.18 * top) if top > 0 else 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 10))))


def _map_picture(flat: ModelMap, labels: Sequence[str]) -> Picture:
    pairs = [(value, i, j) for i, row in enumerate(flat.values) for j, value in enumerate(row[:i]) if value is not None]
    near, far = min(pairs), max(pairs)
    plane = (
        " Right: the same distances as well as a plane can show them (multidimensional scaling); axes have no meaning."
        if flat.positions
        else ""
    )
    return Picture(
        file="distances.png",
        group="compare",
        title="Distances",
        alt=(
            f"Distances between {count(len(labels), 'analysis', 'analyses')}: nearest are {labels[near[1]]} and "
            f"{labels[near[2]]} ({number(near[0], 3)}), farthest {labels[far[1]]} and {labels[far[2]]} "
            f"({number(far[0], 3)})."
        ),
        caption=(
            f"Left: mean drift ({clean(flat.measure, 40)}) between layers of equal relative depth, dark is far.{plane}"
        ),
        draw=partial(draw_distances, flat, tuple(labels)),
    )


def draw_distances(flat: ModelMap, labels: Sequence[str]) -> Figure:
    """The matrix on the left and, where there is one, the map on the right."""
    n = len(labels)
    side = min(max(0.42 * n, 2.2), 5.0)
    margin = 0.12 + 0.062 * max(len(glyphs(label, 26)) for label in labels)
    width = margin + side + 0.9 + (3.6 if flat.positions else 0.3)
    height = 0.6 + side + margin
    figure = blank_figure("Distances between representations", width, height)
    heat = figure.add_axes((margin / width, margin / height, side / width, side / height))
    _heatmap(heat, flat, labels)
    if flat.positions:
        plane = figure.add_axes(((margin + side + 0.75) / width, margin / height, 3.4 / width, side / height))
        _plane(plane, flat, labels)
    return figure


def _heatmap(axes: Axes, flat: ModelMap, labels: Sequence[str]) -> None:
    import numpy as np

    values = np.array([[np.nan if v is None else v for v in row] for row in flat.values])
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    # cividis: made to look alike to people with and without colour vision deficiency, and ordered in grey
    axes.imshow(np.ma.masked_invalid(values), cmap="cividis_r", vmin=0, vmax=top or 1.0, aspect="equal")
    axes.set_facecolor(RULE)
    axes.grid(False)
    names = [glyphs(label, 26) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= NUMBERS_UP_TO:
        for i in range(len(names)):
            for j in range(len(names)):
                value = flat.values[i][j]
                dark = value is not None and value > 0.55 * top
                axes.text(j, i, _short(value), ha="center", va="center", color="white" if dark else INK, fontsize=7)


def _short(value: float | None) -> str:
    """A distance in two decimals, for a cell."""
    if value is None or value == 0:
        return "n/a" if value is None else "0"
    return "<.01" if value < 0.005 else f"{value:.2f}".removeprefix("0")


def _plane(axes: Axes, flat: ModelMap, labels: Sequence[str]) -> None:
    positions = flat.positions or ()
    reach = 1.25 * (max((abs(value) for point in positions for value in point), default=0.0) or 1.0)
    wide = axes.bbox.width / axes.bbox.height
    # equal units on both axes, whatever the shape of the panel
    axes.set_xlim(-reach * max(wide, 1.0), reach * max(wide, 1.0))
    axes.set_ylim(-reach * max(1 / wide, 1.0), reach * max(1 / wide, 1.0))
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for row, (x, y) in enumerate(positions):
        colour, marker, _ = _look(row)
        axes.plot(x, y, marker, color=colour, markersize=7, zorder=4)
    spots = [Label(x, y, glyphs(labels[row], 24), INK) for row, (x, y) in enumerate(positions)]
    place_labels(axes, merged(axes, spots))
    stress = f"stress {flat.stress:.2f}" if flat.stress is not None else ""
    axes.set_title(f"map: {stress}")
