"""The overview of a precision analysis: errors, bytes, formats along the network, and where the error comes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohomcli.precision.result import PlanRow, PrecisionResult
from cohomcli.report.axes import log_ticks, say
from cohomcli.report.names import number
from cohomcli.report.precision.digest import TOP, formats_of, obstructed_names, of_kind, ways
from cohomcli.report.precision.draw_bars import BYTE_PARTS, byte_bars, byte_rows, place_bars
from cohomcli.report.precision.draw_pareto import PLAN
from cohomcli.report.precision.grid import block_of
from cohomcli.report.precision.look import colour_of, in_order, norm_name
from cohomcli.report.style import BAND, INK, RULE, Frame, glyphs, legend_on_top, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BYTE_WAYS = ("plan", "uniform-fp32", "uniform-fp16", "autocast-cuda-fp16")
_MOST_WAYS = 10


def draw_precision(title: str, result: PrecisionResult) -> Figure:
    """Four panels, the lower left one with the formats block by block; without a plan the upper two alone."""
    frame = Frame(left=1.85, right=0.4, top=0.85, bottom=0.5, across=2.6, down=0.85)
    figure, panels = new_figure(title, (2 if result.plan else 1, 2), (3.5, 1.95), frame)
    errors, sizes = panels[:2]
    _errors(errors, result)
    sizes.set_title("b  Bytes of one forward pass, share of fp32")
    byte_bars(sizes, byte_rows(result, _BYTE_WAYS), result.bytes_fp32.total, words=False)
    if result.plan:
        _depth(panels[2], result)
        panels[3].set_title("d  Largest parts of the predicted squared error")
        place_bars(panels[3], result, 8)
    _legend(figure, result)
    return figure


def _errors(axes: Axes, result: PrecisionResult) -> None:
    """A row per way: its measured error on a logarithmic axis; what is within the tolerance lies in the pale band."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator

    name = norm_name(result.norm)
    axes.set_title(f"a  {name[0].upper()}{name[1:]}, held-out inputs")
    ran = [way for way in ways(result) if way.ran][:_MOST_WAYS]
    known = [way.error for way in ran if way.error] + [result.epsilon, result.predicted_error or 0.0]
    known = [error for error in known if error > 0]
    axes.set_yticks(range(len(ran)), [glyphs(way.label, 28) for way in ran])
    axes.set_ylim(len(ran) - 0.4, -0.6)
    if not known or not ran:
        say(axes, "nothing was run")
        axes.set_xticks([])
        return
    low, high = min(known), max(known)
    margin = max(2.0, (high / low) ** 0.08)
    left, right = low / margin, high * margin * (high / low) ** 0.2  # room for the values
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    places = log_ticks(left, high * margin)
    places = places[::2] if len(places) > 6 else places
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    if result.epsilon > 0:
        axes.axvspan(left, result.epsilon, color=BAND, zorder=0)
        axes.axvline(result.epsilon, color=RULE, linewidth=1.2, zorder=1)
    for at, way in enumerate(ran):
        mine = way.key == "plan"
        if way.error is None:
            axes.annotate(
                "not finite", (1.0, at), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=7.5
            )
            continue
        marker, points = ("*", 11.0) if mine else ("s", 4.5)
        x = way.error or left
        axes.plot([x], [at], marker, color=PLAN if mine else "#44525f", ms=points, zorder=4, clip_on=False)
        text = axes.annotate(
            number(way.error, 2), (x, at), (9, 0), textcoords="offset points", va="center", fontsize=7.5
        )
        text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
        if mine and result.predicted_error:
            axes.plot([result.predicted_error], [at], "|", ms=15, mec=INK, mew=1.1, zorder=3)
    axes.set_xlabel(f"band: within epsilon = {result.epsilon:g}; upright: predicted", labelpad=2, fontsize=7.5)


@dataclass(frozen=True)
class Stop:
    """A block, or a module outside of blocks, with the rows whose formats are counted there."""

    name: str
    rows: tuple[PlanRow, ...]


def stops_of(plan: Sequence[PlanRow]) -> list[Stop]:
    """Blocks and other modules in forward order: their operations, or all rows of a plan without operations."""
    rows = of_kind(plan, "op") or list(plan)
    found: dict[str, list[PlanRow]] = {}
    for row in rows:
        found.setdefault(block_of(row.module) or row.module or TOP, []).append(row)
    return [Stop(name, tuple(members)) for name, members in found.items()]


def _depth(axes: Axes, result: PrecisionResult) -> None:
    """Shares of the operations in each format, stop by stop; the line is the share that some format is refused."""
    stops = stops_of(result.plan)
    kind = "operations" if of_kind(result.plan, "op") else "weights"
    axes.set_title(f"c  Formats along the network (share of {kind})")
    axes.grid(False)
    names = obstructed_names(result)
    bottoms = [0.0] * len(stops)
    width = 0.9 if len(stops) <= 60 else 1.0
    for fmt in in_order(row.format for row in result.plan):
        shares = [formats_of(stop.rows)[fmt] / len(stop.rows) for stop in stops]
        axes.bar(range(len(stops)), shares, bottom=bottoms, width=width, color=colour_of(fmt), linewidth=0)
        bottoms = [b + s for b, s in zip(bottoms, shares, strict=True)]
    refused = [sum((row.kind, row.op) in names for row in stop.rows) / len(stop.rows) for stop in stops]
    points = [(at, share) for at, share in enumerate(refused) if share]
    if points:
        size = 3.4 if len(stops) <= 40 else 2.0
        axes.plot(*zip(*points, strict=True), "o", ms=size, mfc="white", mec=INK, mew=0.6, clip_on=False, zorder=4)
    axes.set_xlim(-0.6, len(stops) - 0.4)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    _stop_ticks(axes, stops)


def _stop_ticks(axes: Axes, stops: Sequence[Stop]) -> None:
    """Numbers under the blocks and short names under the other stops, as far as there is room."""
    numbered = [at for at, stop in enumerate(stops) if stop.name.rpartition(".")[2].isdigit()]
    families = Counter(stops[at].name.rpartition(".")[0] for at in numbered)
    step = max(1, math.ceil(len(stops) / 16))
    shown = [at for at in numbered if int(stops[at].name.rpartition(".")[2]) % step == 0] if families else []
    axes.set_xticks(shown, [stops[at].name.rpartition(".")[2] for at in shown], fontsize=7)
    if shown:
        main = max(families, key=lambda name: families[name])
        axes.set_xlabel(f"block of {glyphs(main, 30)}" if main else "block", labelpad=2)
    else:
        few = len(stops) <= 6
        axes.set_xticks(
            range(len(stops)) if few else [], [glyphs(s.name, 10) for s in stops] if few else [], fontsize=7
        )
        axes.set_xlabel("modules in forward order", labelpad=2)


def _legend(figure: Figure, result: PrecisionResult) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[object] = [
        Patch(facecolor=colour_of(f), label=glyphs(f, 12)) for f in in_order(row.format for row in result.plan)
    ]
    if result.plan and obstructed_names(result):
        words = "share where a format is inadmissible"
        handles.append(Line2D([], [], ls="none", marker="o", ms=3.4, mfc="white", mec=INK, mew=0.6, label=words))
    handles += [Patch(facecolor=colour, label=part) for part, colour in BYTE_PARTS]
    legend_on_top(figure, handles, len(handles))
