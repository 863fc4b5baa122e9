"""Layers of one model against layers of another, as a heatmap with the nearest layer of every row marked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cohomcli.report.comparing import labels_of
from cohomcli.report.comparing_permutations import cross_sentences
from cohomcli.report.depth import short_name
from cohomcli.report.names import clean, tick
from cohomcli.report.picture import Picture
from cohomcli.report.style import INK, RULE, blank_figure, glyphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.crosslayers import CrossLayers

ACROSS = 3
"""Matrices side by side in the figure."""


def cross_pictures(comparison: Comparison) -> list[Picture]:
    """One figure with every matrix, not yet drawn; none where nothing was measured."""
    shown = [one for one in comparison.cross if any(v is not None for row in one.values for v in row)]
    if not shown:
        return []
    labels = labels_of(comparison.rows)
    dark = "Dark is unlike" if shown[0].kind == "divergence" else "Dark is alike"
    return [
        Picture(
            file="layers-by-layers.png",
            group="compare",
            title="Layers by layers",
            alt=" ".join(cross_sentences(comparison, labels)),
            caption=(
                f"Every layer of one analysis (down) against every layer of the other (across), by "
                f"{clean(shown[0].measure, 40)} on the same texts. {dark}; dots mark the layer across that a layer "
                "down is most like. Where equal depths do equal work the dots lie on the diagonal."
            ),
            draw=partial(draw_cross, tuple(shown), tuple(labels)),
        )
    ]


def draw_cross(shown: Sequence[CrossLayers], labels: Sequence[str]) -> Figure:
    """Up to three matrices in a row, all on one colour scale."""
    known = [v for one in shown for row in one.values for v in row if v is not None]
    low, high = min(known), max(known)
    across, down = min(len(shown), ACROSS), -(-len(shown) // ACROSS)
    side = 2.6 if across == 3 else 3.4
    left, bottom, top, bar = 0.85, 0.95, 0.55, 0.75
    width, height = across * (side + left) + bar, down * (side + bottom) + top
    figure = blank_figure(f"Layers by layers: {glyphs(shown[0].measure, 40)}", width, height)
    image = None
    for at, one in enumerate(shown):
        x = (at % across) * (side + left) + left
        y = height - top - (at // across) * (side + bottom) - side
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        image = _heatmap(axes, one, (low, high if high > low else low + 1.0))
        axes.set_ylabel(glyphs(labels[one.row], 34), labelpad=2)
        axes.set_xlabel(glyphs(labels[one.against], 34), labelpad=2)
    place = figure.add_axes(((width - bar + 0.15) / width, (height - top - side) / height, 0.14 / width, side / height))
    _colour_bar(figure, place, image)
    return figure


def _heatmap(axes: Axes, one: CrossLayers, limits: tuple[float, float]) -> AxesImage:
    import numpy as np

    values = np.array([[np.nan if v is None else v for v in row] for row in one.values])

    # cividis: made to look alike to people with and without colour vision deficiency, and ordered in grey
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap="cividis_r", vmin=limits[0], vmax=limits[1], aspect="auto", origin="upper"
    )
    axes.set_facecolor(RULE)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for names, set_ticks, turn in ((one.others, axes.set_xticks, 90), (one.layers, axes.set_yticks, 0)):
        step = -(-len(names) // 16)
        places = list(range(0, len(names), step))
        set_ticks(places, [glyphs(short_name(names[at]), 14) for at in places], rotation=turn, fontsize=7.5)
    column = {name: at for at, name in enumerate(one.others)}
    dots = [(column[match], at) for at, match in enumerate(one.matched) if match is not None]
    if dots:
        size = 14 if max(len(one.layers), len(one.others)) <= 16 else 6
        xs, ys = zip(*dots, strict=True)
        axes.scatter(xs, ys, s=size, facecolor="white", edgecolor=INK, linewidth=0.8, zorder=3)
    return image


def _colour_bar(figure: Figure, place: Axes, image: AxesImage | None) -> None:
    from matplotlib.ticker import FuncFormatter

    if image is None:
        return
    bar = figure.colorbar(image, cax=place)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 10))))
    place.grid(False)
    place.tick_params(length=0)
