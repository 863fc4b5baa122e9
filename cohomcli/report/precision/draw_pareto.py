"""Cost against tolerance: the cheapest plan for every epsilon, what is proved about it, and the baselines beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohomcli.precision.result import BytesRow, PrecisionResult
from cohomcli.report.axes import log_ticks, say
from cohomcli.report.names import tick
from cohomcli.report.placing import Label, merged, place_labels
from cohomcli.report.precision.digest import ways
from cohomcli.report.precision.look import norm_name
from cohomcli.report.style import INK, MUTED, RULE, Frame, glyphs, legend_on_top, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAN = "#D55E00"
"""The plan's own colour, not a format's."""
_BASELINE = "#44525f"
_MARGIN, _LEAST_MARGIN = 1.7, 0.7  # inches right of the axes for names, with and without outputs that are not finite


@dataclass(frozen=True)
class Mark:
    """A point with its name; `error` is None when the output was not finite."""

    label: str
    error: float | None
    cost: float
    is_plan: bool


def draw_pareto(title: str, result: PrecisionResult) -> Figure:
    """One wide panel: tolerance or error to the right on a logarithmic axis, cost upwards."""
    margin = _MARGIN if any(mark.error is None for mark in marks(result)) else _LEAST_MARGIN
    frame = Frame(left=0.75, right=margin + 0.1, top=0.85, bottom=0.55)
    figure, (axes,) = new_figure(title, (1, 1), (7.0, 3.7), frame)
    pareto_panel(axes, result, margin)
    legend_on_top(figure, axes.get_legend_handles_labels()[0])
    return figure


def marks(result: PrecisionResult) -> list[Mark]:
    """The plan and every baseline that was run, where its cost is in the objective's units; one per label."""
    if result.objective not in ("bytes", "weights"):
        return []

    def cost(row: BytesRow) -> float:
        return float(row.total if result.objective == "bytes" else row.weights)

    ran = [way for way in ways(result) if way.bytes is not None and way.ran]
    return [Mark(glyphs(w.label, 26), w.error, cost(w.bytes), w.key == "plan") for w in ran if w.bytes is not None]


def pareto_panel(axes: Axes, result: PrecisionResult, margin: float) -> None:
    """Draws curve, proved lower bound, tolerance and marks, whose names may use `margin` inches right of the axes."""
    found = marks(result)
    curve = [p for p in result.pareto if p.epsilon > 0]
    known = [(p.epsilon, p.objective) for p in curve if p.objective is not None]
    bound = [(p.epsilon, p.lower_bound) for p in curve if p.objective is not None and p.lower_bound is not None]
    errors = [error for error in (*(p.epsilon for p in curve), *(m.error or 0.0 for m in found)) if error > 0]
    costs = [cost for _, cost in (*known, *bound)] + [m.cost for m in found]
    if not costs or not errors:
        say(axes, "no trade-off was computed")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    unit, name = _unit(result, max(costs))
    tolerance = [result.epsilon] if result.epsilon > 0 else []
    _axes(axes, [*errors, *tolerance], [c / unit for c in costs], any(m.error is None for m in found))
    axes.set_xlabel(f"{norm_name(result.norm)} (curve: tolerance)", labelpad=2)
    axes.set_ylabel(name, labelpad=3)
    lines = [[(x, cost / unit) for x, cost in line] for line in (known, bound) if line]
    if known:
        axes.plot(
            *zip(*lines[0], strict=True), "-o", color=INK, ms=3, zorder=3, label="cheapest plan found (predicted)"
        )
    if bound:
        words = "lower bound (proved in the model)"
        axes.plot(*zip(*lines[1], strict=True), "--", color=MUTED, lw=1.0, zorder=2, label=words)
    labels = _marks(axes, found, unit)
    for epsilon in tolerance:
        axes.axvline(epsilon, color=RULE, linewidth=1.2, zorder=1)
        lines.append([(epsilon, height) for height in axes.get_ylim()])
        text, top = f"epsilon = {_power(epsilon)}", axes.get_ylim()[1]
        axes.annotate(text, (epsilon, top), (0, 3), textcoords="offset points", ha="center", fontsize=7.5, color=MUTED)
    place_labels(axes, merged(axes, labels), lines, margin)


def _unit(result: PrecisionResult, largest: float) -> tuple[float, str]:
    if result.objective not in ("bytes", "weights"):
        return 1.0, "cost"
    what = "weights" if result.objective == "weights" else "one pass"
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024**power:
            return 1024.0**power, f"{name}, {what}"
    return 1.0, f"bytes, {what}"


def _axes(axes: Axes, errors: Sequence[float], costs: Sequence[float], has_infinite: bool) -> None:
    """A logarithmic error axis, with room on the right for what is not finite, and a linear cost axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    low, high = min(errors), max(errors)
    margin = max(1.6, (high / low) ** 0.06)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin * (margin**1.5 if has_infinite else 1.0))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    places = log_ticks(low / margin, high * margin)
    axes.set_xticks(places, [_power(place) for place in places])
    bottom, top = min(costs), max(costs)
    room = max(top - bottom, 0.1 * top) or 1.0
    axes.set_ylim(max(bottom - 0.15 * room, 0.0), top + 0.15 * room)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 6))))


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _marks(axes: Axes, found: Sequence[Mark], unit: float) -> list[Label]:
    """Draws the points, those without a finite error as arrows at the right edge; returns their names."""
    left, right = axes.get_xlim()
    labels = []
    for mark in found:
        x = right if mark.error is None else mark.error or left
        style, size, colour = ("*", 12.0, PLAN) if mark.is_plan else ("s", 5.0, _BASELINE)
        kind = "the plan (measured)" if mark.is_plan else "baselines (measured)"
        known = {line.get_label() for line in axes.lines}
        axes.plot(
            [x],
            [mark.cost / unit],
            style if mark.error is not None else ">",
            color=colour,
            ms=size,
            clip_on=False,
            zorder=5,
            label=None if kind in known or mark.error is None else kind,
        )
        words = mark.label if mark.error is not None else f"{mark.label}: not finite"
        labels.append(Label(x, mark.cost / unit, words, PLAN if mark.is_plan else INK))
    return labels
