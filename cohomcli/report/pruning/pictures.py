"""The picture of a pruning: drift over depth, and what every map lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.pruning.results import PruningResult
from cohomcli.report.names import clean, number
from cohomcli.report.picture import Picture
from cohomcli.report.pruning.part import sweep_curve
from cohomcli.report.pruning.topology import topology_picture
from cohomcli.report.style import INK, MARKERS, MODELS, Frame, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pruning_pictures(result: PruningResult, subject: str, prefix: str) -> list[Picture]:
    """One figure; its file name starts with `prefix`."""
    caption = (
        "Left: how far the pruned model's hidden states are from the dense ones after every block, as a share of their "
        "energy. Right: the share of its output's energy that every pruned map lost; both on calibration texts."
    )
    alt = f"Drift of {subject} by block, {number(result.drift[-1])} after the last, and the loss of every map."
    pictures = [Picture(f"{prefix}pruning.png", "pruning", "Pruning", alt, caption, lambda: draw(subject, result))]
    if result.topology is not None:
        pictures.append(topology_picture(result.topology, subject, prefix))
    if result.sweep:
        caption = "Perplexity on held-out text over the share that was pruned; 0 is the dense model."
        alt = f"Perplexity of {subject} over sparsity, {len(result.sweep) + 2} points."
        picture = Picture(
            f"{prefix}pruning_sweep.png", "pruning", "Sparsity and perplexity", alt, caption,
            lambda: draw_sweep(subject, result),
        )  # fmt: skip
        pictures.append(picture)
    return pictures


def draw_sweep(title: str, result: PruningResult) -> Figure:
    """One line for every evaluation set."""
    figure, (axes,) = new_figure(title, (1, 1), (4.0, 2.2), Frame(right=1.5))
    curve = sweep_curve(result)
    for at, one in enumerate(result.perplexity):
        colour, marker = MODELS[at % len(MODELS)], MARKERS[at % len(MARKERS)]
        values = [values[at] for _, values, _ in curve]
        name = f"{clean(one.dataset)} ({one.domain})"
        axes.plot([sparsity for sparsity, _, _ in curve], values, label=name, color=colour, marker=marker, ms=3)
    axes.set_xlabel("sparsity", labelpad=2)
    axes.set_ylabel("perplexity")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.4)
    return figure


def draw(title: str, result: PruningResult) -> Figure:
    """Two panels side by side over the blocks."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_figure(title, (1, 2), (4.0, 2.2), Frame(right=1.5))
    left.set_title("Drift of the hidden states")
    left.plot(range(len(result.drift)), result.drift, color=INK, marker="o", ms=3)
    right.set_title("Share of output energy lost")
    kinds = dict.fromkeys(one.name.partition(".")[2] for one in result.maps)
    for at, kind in enumerate(kinds):
        found = [one for one in result.maps if one.name.partition(".")[2] == kind]
        blocks = [int(one.name.partition(".")[0].removeprefix("layer_")) for one in found]
        colour, marker = MODELS[at % len(MODELS)], MARKERS[at % len(MARKERS)]
        right.plot(blocks, [one.error for one in found], label=kind, color=colour, marker=marker, ms=3, lw=1.2)
    if kinds:
        right.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.4)
    for axes in (left, right):
        axes.set_xlabel("block", labelpad=2)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # room above a flat curve too
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
