"""The picture of a circuit: effects by layer and head, and how much is kept as components are added."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from cohomcli.circuits.results import CircuitResult
from cohomcli.report.names import clean, percent
from cohomcli.report.picture import Picture
from cohomcli.report.style import BAND, DIMENSION, INK, MUTED, Frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_NAME = re.compile(r"layer_(\d+)\.(head|mlp|neuron)(?:_(\d+))?")


def circuit_pictures(result: CircuitResult, subject: str, prefix: str) -> list[Picture]:
    """One figure; its file name starts with `prefix`."""
    what = "summed over the edges that leave it" if result.options.level == "edges" else "when it is exchanged"
    caption = (
        f"Left: the effect of every head, and of each layer's MLP in the last column, on the metric {what}; framed: in "
        "the circuit. Right: faithfulness as components are kept in order of effect, on held-out pairs, with 95% "
        "limits; the circle is the circuit."
    )
    alt = (
        f"Effects of the heads of {subject} by layer, and a curve that ends at a circuit of {len(result.circuit)} "
        f"components keeping {percent(result.faithfulness)}."
    )
    return [Picture(f"{prefix}circuit.png", "circuits", "Circuit", alt, caption, lambda: draw(subject, result))]


def draw(title: str, result: CircuitResult) -> Figure:
    """Two panels side by side."""
    height = min(4.6, max(1.9, 0.2 * result.n_layer))
    figure, (left, right) = new_figure(title, (1, 2), (3.9, height), Frame(left=0.6, across=1.15))
    _heat(left, result)
    _curve(right, result)
    return figure


def table_of(result: CircuitResult) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Effects and membership by layer (rows) and head, the MLP last: (n_layer, n_heads + 1) both."""
    effects = np.zeros((result.n_layer, result.n_heads + 1))
    members = np.zeros(effects.shape, dtype=bool)
    for one in result.components:
        match = _NAME.match(one.name)
        if match is None:  # edges that leave the input
            continue
        at = int(match[1]), int(match[3]) if match[2] == "head" else result.n_heads
        effects[at] += one.effect
        members[at] |= one.in_circuit
    return effects, members


def _heat(axes: Axes, result: CircuitResult) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    effects, members = table_of(result)
    largest = max(float(np.abs(effects).max()), 1e-12)
    colours = LinearSegmentedColormap.from_list("effect", [DIMENSION[1], "#ffffff", DIMENSION[0]])
    axes.set_title("Effect on the metric")
    image = axes.imshow(effects, cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
    for row, column in zip(*members.nonzero(), strict=True):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=0.9))
    axes.grid(visible=False)
    axes.set_xlabel("head", labelpad=2)
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    step = max(1, result.n_heads // 12)
    ticks = [*range(0, result.n_heads, step), result.n_heads]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), "MLP"])
    bar: Any = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)


def _curve(axes: Axes, result: CircuitResult) -> None:
    kept = [max(point.kept, 0.5) for point in result.curve]
    axes.set_title("Faithfulness")
    axes.axhspan(1 - result.options.tolerance, 1 + result.options.tolerance, color=BAND)
    axes.fill_between(
        kept, [p.low for p in result.curve], [p.high for p in result.curve], color=DIMENSION[0], alpha=0.2, linewidth=0
    )
    axes.plot(kept, [p.faithfulness for p in result.curve], color=DIMENSION[0], marker="o", ms=3)
    axes.plot([max(len(result.circuit), 0.5)], [result.faithfulness], marker="o", ms=8, mfc="none", mec=DIMENSION[1])
    axes.set_xscale("log")
    ticks = [10**power for power in range(6) if 10**power <= max(kept)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"{clean(result.options.level)} kept (0 at the left edge)", labelpad=2)
    axes.axhline(0, color=MUTED, linewidth=0.7)
    values = [point.faithfulness for point in result.curve]
    axes.set_ylim(min(-0.1, min(values) - 0.05), max(1.25, max(values) + 0.1))
