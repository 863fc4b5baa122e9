"""One heatmap with its colour scale, drawn alike everywhere: bright is more, or with `reverse` less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cohomcli.report.names import number, tick
from cohomcli.report.style import MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS_UP_TO = 8
"""Rows and columns up to which the cells carry their numbers."""


@dataclass(frozen=True)
class Heatmap:
    """`values` (rows, columns), NaN where there is none; row 0 at the bottom. Ticks are positions with labels."""

    title: str
    values: NDArray[np.float64]
    rows: Sequence[tuple[int, str]]
    columns: Sequence[tuple[int, str]]
    reverse: bool = False
    limits: tuple[float, float] | None = None
    square: bool = True


def draw_heatmap(axes: Axes, heatmap: Heatmap) -> None:
    """Draws `heatmap` into `axes`, with a colour bar on its right."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter

    low, high = heatmap.limits or _range(heatmap.values)
    colours = matplotlib.colormaps["cividis_r" if heatmap.reverse else "cividis"].with_extremes(bad=RULE)
    image = axes.imshow(
        np.ma.masked_invalid(heatmap.values), cmap=colours, vmin=low, vmax=high, origin="lower",
        aspect="equal" if heatmap.square else "auto", interpolation="nearest",
    )  # fmt: skip
    axes.set_title(heatmap.title)
    axes.grid(visible=False)
    for places, put in ((heatmap.columns, axes.set_xticks), (heatmap.rows, axes.set_yticks)):
        put([place for place, _ in places], [label for _, label in places], fontsize=7.5)
    if max(heatmap.values.shape) <= NUMBERS_UP_TO and heatmap.square:
        _numbers(axes, heatmap, (low, high))
    scale = axes.inset_axes((1.04, 0.0, 0.05, 1.0))
    bar = axes.figure.colorbar(image, cax=scale)
    bar.outline.set_visible(False)  # type: ignore[operator]
    scale.tick_params(labelsize=7, colors=MUTED, length=2)
    scale.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 10))))


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _numbers(axes: Axes, heatmap: Heatmap, limits: tuple[float, float]) -> None:
    """Each cell's number, dark on bright and bright on dark."""
    for (row, column), value in np.ndenumerate(heatmap.values):
        if np.isfinite(value):
            share = (value - limits[0]) / (limits[1] - limits[0])
            bright = (share < 0.5) if heatmap.reverse else (share > 0.5)
            axes.text(
                column, row, number(float(value), 2), ha="center", va="center", fontsize=6,
                color="black" if bright else "white",
            )  # fmt: skip
