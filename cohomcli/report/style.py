"""One visual identity for every figure: colours, type and grid, and PNG files that are equal for equal input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.report.names import UNPRINTABLE, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

DPI = 150

# Okabe & Ito's colour-blind safe palette; a homology dimension always has the same colour.
DIMENSION = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MODELS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, MUTED, RULE, GRID, BAND = "#1b1f24", "#66707a", "#aab2bb", "#e4e8ec", "#f1f3f6"
SCALE, NORM = "#44525f", "#CC79A7"

_RC: Any = {
    # DejaVu Sans comes with matplotlib: the same glyphs on every machine, hence the same bytes.
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    # Names may hold dollar signs; nothing of ours is typeset as TeX.
    "text.parse_math": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "cohom",
}


@contextmanager
def identity() -> Iterator[None]:
    """The style, independent of any matplotlibrc of the machine; everything is drawn and saved inside it."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


@dataclass(frozen=True)
class Frame:
    """Room around and between the panels of a figure, in inches.

    Margins are fixed, not solved for: the axes' numbers are short by construction, and matplotlib's layout solver
    takes longer than drawing.
    """

    left: float = 0.55
    right: float = 0.2
    top: float = 0.58
    bottom: float = 0.5
    across: float = 0.65
    down: float = 0.75


def blank_figure(title: str, width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches on an Agg canvas, unknown to pyplot, with its title on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.text(
        0.12 / width,
        1 - 0.12 / height,
        glyphs(title, int(width / 0.078)),
        ha="left",
        va="top",
        fontsize=9.5,
        color=MUTED,
    )
    return figure


def new_figure(
    title: str, shape: tuple[int, int], panel: tuple[float, float], frame: Frame
) -> tuple[Figure, list[Axes]]:
    """A figure with a title and `shape` = (rows, columns) panels of equal size.

    `panel` is the width and height of one panel in inches. The panels come row by row.
    """
    rows, columns = shape
    width = frame.left + columns * panel[0] + (columns - 1) * frame.across + frame.right
    height = frame.top + rows * panel[1] + (rows - 1) * frame.down + frame.bottom
    figure = blank_figure(title, width, height)
    axes = []
    for row in range(rows):
        for column in range(columns):
            x = frame.left + column * (panel[0] + frame.across)
            y = height - frame.top - row * (panel[1] + frame.down) - panel[1]
            axes.append(figure.add_axes((x / width, y / height, panel[0] / width, panel[1] / height)))
    return figure, axes


def legend_on_top(figure: Figure, handles: Sequence[Any], columns: int = 8) -> None:
    """A legend in rows of `columns` under the figure's title, aligned with it."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.06 / width, 1 - 0.27 / height),
        ncols=max(1, min(columns, len(handles))),
        labelcolor=INK,
        borderaxespad=0.1,
        handlelength=1.2,
        columnspacing=1.5,
    )


def save_png(figure: Figure, path: Path) -> None:
    """Writes `figure` with no metadata, so that equal figures are equal files."""
    figure.savefig(path, format="png", metadata={"Software": None})


def glyphs(text: str, limit: int = 48) -> str:
    """`text` as it can be drawn: one line, shortened, characters the font lacks replaced."""
    return "".join(c if ord(c) in _known_glyphs() else UNPRINTABLE for c in clean(text, limit))


@cache
def _known_glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def depth_colours() -> Colormap:
    """The sequential map for depth: viridis without its palest end, which vanishes on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"]([i / 255 * 0.9 for i in range(256)]))


def dimension_colours(dimension: int) -> Colormap:
    """A sequential map from white through the colour of a homology dimension to nearly black."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(f"H{dimension}", ["#ffffff", DIMENSION[dimension], "#2b1200"])
