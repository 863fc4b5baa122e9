"""Bars: which stores make the error, and what moves through one forward pass under the plan and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohomcli.precision.result import BytesRow, PlanRow, PrecisionResult
from cohomcli.report.axes import say
from cohomcli.report.names import count, percent, size, tick
from cohomcli.report.precision.digest import TOP as TOP_LEVEL
from cohomcli.report.precision.digest import Group, by_place_and_op, contributors, ways, what
from cohomcli.report.precision.look import colour_of, in_order
from cohomcli.report.precision.tables import TOP
from cohomcli.report.style import INK, Frame, glyphs, legend_on_top, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VISIBLE = 1e-3  # of the error; a thinner bar is not in the legend
BYTE_PARTS = (("weights", "#44525f"), ("activations", "#a3b4c4"), ("casts", "#D55E00"))
"""The parts of a pass and their colours, none of them a format's."""


def draw_contributors(title: str, result: PrecisionResult) -> Figure:
    """The largest shares of the predicted squared error: by place with repeated blocks summed, and store by store."""
    groups = top_groups(result, TOP)
    single = contributors(result.plan, TOP)
    both = len(groups) < len(by_place_and_op(result.plan)) or any(len(g.rows) > 1 for g in groups)
    bars = [[(_place_name(g), _parts(g)) for g in groups]] if both else []
    bars.append([(_row_name(r), {r.format: r.share}) for r in single])
    height = max(0.6, 0.19 * max(map(len, bars)))
    frame = Frame(left=2.75, right=0.6, across=3.15, top=0.85, bottom=0.2)
    figure, panels = new_figure(title, (1, len(bars)), (2.3 if both else 4.5, height), frame)
    titles = ["By place, blocks summed", "One by one"] if both else ["One by one"]
    for axes, rows, heading in zip(panels, bars, titles, strict=True):
        axes.set_title(heading)
        share_bars(axes, rows)
    _format_legend(figure, [f for rows in bars for _, parts in rows for f, s in parts.items() if s > _VISIBLE])
    return figure


def top_groups(result: PrecisionResult, most: int) -> list[Group]:
    """The places with the largest positive shares, largest first."""
    groups = sorted(by_place_and_op(result.plan), key=lambda g: -g.share)
    return [g for g in groups if g.share > 0][:most]


def _parts(group: Group) -> dict[str, float]:
    """A group's share by format, widest first; negative parts are left to the sum's label."""
    formats = in_order(row.format for row in group.rows)
    return {f: sum(row.share for row in group.rows if row.format == f) for f in formats}


def _place_name(group: Group) -> str:
    place, op = group.key
    times = f" \N{MULTIPLICATION SIGN}{len(group.rows)}" if len(group.rows) > 1 else ""
    return _joined(place, op, 40 - len(times)) + times


def _row_name(row: PlanRow) -> str:
    return _joined(row.module or TOP_LEVEL, what(row), 40)


def _joined(module: str, op: str, room: int) -> str:
    """`layers.3.mlp.down_proj linear`: the end of the path that fits, then the operation."""
    op = glyphs(op, 20)
    parts = module.split(".")
    while len(parts) > 1 and len(".".join(parts)) + len(op) + 1 > room:
        parts.pop(0)
    return f"{glyphs('.'.join(parts), max(room - len(op) - 1, 8))} {op}"


def place_bars(axes: Axes, result: PrecisionResult, most: int) -> None:
    """The `most` places with the largest shares."""
    share_bars(axes, [(_place_name(g), _parts(g)) for g in top_groups(result, most)])


def share_bars(axes: Axes, rows: Sequence[tuple[str, dict[str, float]]]) -> None:
    """One bar per (name, share by format), the first on top, with its sum in percent."""
    if not rows:
        say(axes, "no store has an error")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.grid(False)
    for at, (_, parts) in enumerate(rows):
        left = 0.0
        for fmt, share in parts.items():
            if share > 0:
                axes.barh(at, share, left=left, height=0.74, color=colour_of(fmt))
                left += share
        total = sum(parts.values())
        axes.annotate(
            percent(max(total, 0.0)), (left, at), (3, 0), textcoords="offset points", va="center", fontsize=7, color=INK
        )
    most = max(sum(max(s, 0.0) for s in parts.values()) for _, parts in rows)
    axes.set_xlim(0, most * 1.22)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _format_legend(figure: Figure, formats: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour_of(f), label=glyphs(f, 12)) for f in in_order(formats)]
    legend_on_top(figure, handles)


def draw_bytes(title: str, result: PrecisionResult) -> Figure:
    """Bytes of one forward pass, split by what they are, of the plan and of every baseline that was counted."""
    rows = byte_rows(result)
    frame = Frame(left=2.15, right=2.3, top=0.68, bottom=0.45)
    figure, (axes,) = new_figure(title, (1, 1), (5.2, max(0.6, 0.27 * len(rows))), frame)
    byte_bars(axes, rows, result.bytes_fp32.total, words=True)
    _parts_legend(figure)
    return figure


def byte_rows(result: PrecisionResult, only: Sequence[str] = ()) -> list[tuple[str, BytesRow]]:
    """(label, bytes) of the plan and the baselines, or of those whose keys are in `only`."""
    return [(way.label, way.bytes) for way in ways(result) if way.bytes is not None and (not only or way.key in only)]


def byte_bars(axes: Axes, rows: Sequence[tuple[str, BytesRow]], whole: int, words: bool) -> None:
    """One stacked bar per row; `words` writes bytes, their share of `whole` and the casts at its end."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit, name = _unit(max((row.total for _, row in rows), default=1))
    for at, (_, row) in enumerate(rows):
        left = 0.0
        for part, colour in BYTE_PARTS:
            width = getattr(row, part) / unit
            axes.barh(at, width, left=left, height=0.7, color=colour)
            left += width
        share = percent(row.total / whole) if whole else ""
        text = f"{size(row.total)}, {share} of fp32, {count(row.n_casts, 'cast')}" if words else share
        axes.annotate(text, (left, at), (4, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max((row.total for _, row in rows), default=1) / unit * (1.02 if words else 1.2) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_xlabel(name, labelpad=2)
    axes.set_yticks(range(len(rows)), [glyphs(label, 32) for label, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _unit(largest: float) -> tuple[float, str]:
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024**power:
            return 1024.0**power, name
    return 1.0, "bytes"


def _parts_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    legend_on_top(figure, [Patch(facecolor=colour, label=part) for part, colour in BYTE_PARTS])
