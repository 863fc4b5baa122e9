"""The picture of generated grids: each one after every pass, hidden cells in purple."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohomcli.report.gridimages import colours, sheet
from cohomcli.report.picture import Picture
from cohomcli.report.style import blank_figure
from cohomcli.training.generated import GeneratedGrid, GenerationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 10, 9  # grids and passes in the picture
_HIDDEN = "?"


def generation_pictures(result: GenerationResult, subject: str, prefix: str) -> list[Picture]:
    """One figure; its file name starts with `prefix`."""
    shown = min(len(result.grids), _ROWS)
    caption = (
        "A grid a row: before the first pass on the left, then after the passes named on top. Purple cells are not "
        "filled yet. All of grids.png, and with --animate steps.gif, lie in the run folder."
    )
    alt = f"{shown} grids of {subject} as they are filled in {result.steps} passes."
    return [Picture(f"{prefix}generation.png", "generation", "Passes", alt, caption, lambda: draw(subject, result))]


def draw(title: str, result: GenerationResult) -> Figure:
    """Rows of grids over the passes."""
    passes = shown_passes(result.steps)
    grids = chosen(result.grids)
    strips = [grid.after(step, _HIDDEN) for grid in grids for step in passes]
    image = sheet(strips, colours(result.symbols, result.palette), len(passes), 1)
    across, left, top = 0.62 * len(passes), 0.85, 0.62
    down = across * image.shape[0] / image.shape[1]
    width, height = left + across + 0.2, top + down + 0.15
    figure = blank_figure(title, width, height)
    axes = figure.add_axes((left / width, 0.15 / height, across / width, down / height))
    axes.imshow(image, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    span = image.shape[1] / len(passes)
    for at, step in enumerate(passes):
        axes.text((at + 0.5) * span, -0.6, "start" if step == 0 else str(step), ha="center", va="bottom", fontsize=7.5)
    for at, grid in enumerate(grids):
        at_row = (at + 0.5) * image.shape[0] / len(grids)
        axes.text(-0.8, at_row, grid.label[:12], ha="right", va="center", fontsize=7.5)
    return figure


def shown_passes(steps: int) -> list[int]:
    """The passes of the picture: 0, the last, and evenly spaced ones between, at most nine."""
    last = min(steps, _COLUMNS - 1)
    return sorted({round(at * steps / last) for at in range(last + 1)})


def chosen(grids: Sequence[GeneratedGrid]) -> list[GeneratedGrid]:
    """Ten grids at most, evenly over all: of ten classes one each."""
    n = min(len(grids), _ROWS)
    return [grids[at * len(grids) // n] for at in range(n)]
