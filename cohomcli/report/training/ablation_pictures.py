"""The picture of an ablation: every seed of every arm as a dot, and the paired differences with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.report.names import number
from cohomcli.report.picture import Picture
from cohomcli.report.style import GRID, INK, MODELS, MUTED, RULE, Frame, new_figure
from cohomcli.training.ablation_results import AblationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"helps": MODELS[2], "hurts": MODELS[1], "no evidence": INK, "reference": MUTED}


def ablation_pictures(result: AblationResult, subject: str, prefix: str) -> list[Picture]:
    """One figure of the ablation; its file name starts with `prefix`."""
    caption = (
        f"Left: {result.metric} on the test split, a dot per seed, a bar at the mean; seeds are joined by faint lines. "
        "Right: mean difference from the plain arm of the same seed, with its corrected bootstrap interval; green "
        "helps, orange hurts, black is no evidence."
    )
    means = ", ".join(f"{arm.arm} {number(arm.mean, 3)}" for arm in result.arms)
    alt = f"Ablation of {subject}: mean {result.metric} by arm: {means}."
    return [Picture(f"{prefix}ablation.png", "training", "Ablation", alt, caption, lambda: draw(subject, result))]


def draw(title: str, result: AblationResult) -> Figure:
    """Two panels side by side with the arms as rows."""
    rows = len(result.arms)
    frame = Frame(left=0.95, top=0.62, across=0.3)
    figure, (left, right) = new_figure(title, (1, 2), (3.0, 0.3 * rows + 0.5), frame)
    _seeds(left, result)
    _differences(right, result)
    for axes in (left, right):
        axes.set_ylim(rows - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=GRID)
    left.set_yticks(range(rows), [arm.arm for arm in result.arms])
    right.set_yticks([])
    return figure


def _seeds(axes: Axes, result: AblationResult) -> None:
    arms = list(enumerate(result.arms))
    for at in range(len(result.seeds)):
        known = [(value, row) for row, arm in arms if (value := arm.values[at]) is not None]
        axes.plot([x for x, _ in known], [row for _, row in known], color=RULE, lw=0.5, zorder=1)
    for row, arm in arms:
        dots = [value for value in arm.values if value is not None]
        axes.plot(dots, [row] * len(dots), "o", ms=4, mfc="white", mec=_COLOURS[arm.verdict], zorder=2)
        if arm.mean is not None:
            axes.plot([arm.mean, arm.mean], [row - 0.3, row + 0.3], color=_COLOURS[arm.verdict], lw=2, zorder=3)
    axes.set_title(f"{result.metric} by seed")
    axes.set_xlabel("more is better" if result.metric == "accuracy" else "less is better", labelpad=2)


def _differences(axes: Axes, result: AblationResult) -> None:
    axes.axvline(0, color=MUTED, lw=1)
    for row, arm in enumerate(result.arms):
        if arm.difference is not None and arm.interval is not None:
            colour = _COLOURS[arm.verdict]
            axes.plot(list(arm.interval), [row, row], color=colour, lw=1.6, solid_capstyle="butt")
            axes.plot([arm.difference], [row], "o", ms=5, color=colour)
    axes.set_title("difference from none")
    axes.set_xlabel(result.metric, labelpad=2)
