"""Parts shared by the plots: the depth axis, one series over depth, the choice of a scale, labels at the line ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cohomcli.report.depth import Depth, Track, labelled, short_name
from cohomcli.report.names import number, tick
from cohomcli.report.style import BAND, MUTED, RULE, glyphs
from cohomcli.topology.results import LayerTopology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scale = Literal["auto", "linear", "log"]

LOG_RANGE = 20.0
"""A value axis becomes logarithmic when its largest value is more than this many times its smallest."""

_MARKS = {"embedding": "s", "final_norm": "D"}


@dataclass(frozen=True)
class Curve:
    """One figure of every layer, its colour and the words at its end."""

    label: str
    colour: str
    value: Callable[[LayerTopology], float | None]
    dotted: bool = False


def depth_axis(axes: Axes, depth: Depth, room: int) -> None:
    """Lays out the x axis: room for about `room` labels, a pale band behind what is no block."""
    stops = depth.stops
    axes.set_xlim(-0.6, len(stops) - 0.4)
    for at, stop in enumerate(stops):
        if stop.role in ("embedding", "norm") and len(stops) > 1:
            axes.axvspan(at - 0.5, at + 0.5, color=BAND, linewidth=0, zorder=0)
    shown = labelled(stops, room)
    axes.set_xticks(shown, [glyphs(stops[i].label) for i in shown])
    if len(shown) < len(stops):
        # Short ticks for the unlabelled layers, as one line of markers: real ticks are matplotlib's slowest artists.
        every = range(len(stops))
        floor = axes.get_xaxis_transform()
        axes.plot(every, [0] * len(stops), ls="none", marker=3, ms=2, mew=0.7, c=RULE, transform=floor, clip_on=False)
    if any(stop.role == "block" for stop in stops):
        axes.set_xlabel("block", labelpad=2)


def draw_curves(
    axes: Axes, lines: Sequence[tuple[Track, Curve]], scale: Scale = "auto"
) -> list[tuple[int, LayerTopology, float]]:
    """Draws every curve along its track, sets the value scale and labels the line ends.

    Returns what was drawn as (position, layer, value). Curves with an empty label get none.
    """
    drawn: list[tuple[int, LayerTopology, float]] = []
    ends: dict[str, tuple[float, str, str]] = {}
    for track, curve in lines:
        points = []
        for at, layer in zip(track.positions, track.layers, strict=True):
            value = curve.value(layer)
            if value is not None and math.isfinite(value):
                points.append((at, layer, value))
        if points:
            _draw_track(axes, points, curve)
            drawn += points
            ends[curve.label] = (points[-1][2], curve.label, curve.colour)
    set_scale(axes, [value for _, _, value in drawn], scale)
    label_ends(axes, [end for label, end in ends.items() if label])
    return drawn


def _draw_track(axes: Axes, points: Sequence[tuple[int, LayerTopology, float]], curve: Curve) -> None:
    """One line over depth. The step into the final norm is dashed: it rescales, it does not compute on."""
    xs, layers, ys = zip(*points, strict=True)
    normed = layers[-1].name.endswith("final_norm")
    body = len(xs) - 1 if normed else len(xs)
    axes.plot(xs[:body], ys[:body], ":" if curve.dotted else "-", color=curve.colour)
    if normed:
        axes.plot(xs[-2:], ys[-2:], "--", color=curve.colour, linewidth=1)
    size = 4.0 if len(points) <= 40 else 2.4
    marks = [_MARKS.get(layer.name.rpartition(".")[2], "o") for layer in layers]
    for mark in sorted(set(marks)):
        places = [(x, y) for x, y, m in zip(xs, ys, marks, strict=True) if m == mark]
        axes.plot(
            *zip(*places, strict=True),
            linestyle="none",
            marker=mark,
            color=curve.colour,
            markerfacecolor=curve.colour if mark == "o" else "white",
            markersize=size,
            clip_on=False,
            zorder=3,
        )


def mark_peak(axes: Axes, drawn: Sequence[tuple[int, LayerTopology, float]], colour: str) -> None:
    """Names the layer with the largest value and says the value, beside its point."""
    from matplotlib.patheffects import withStroke

    if len(drawn) > 1 and len({value for _, _, value in drawn}) < 2:
        return
    at, layer, value = max(drawn, key=lambda point: point[2])
    low, high = axes.get_xlim()
    side = (at - low) / (high - low)
    align = "left" if side < 0.25 else "right" if side > 0.75 else "center"
    text = f"{glyphs(short_name(layer.name))}: {number(value, 3)}"
    note = axes.annotate(text, (at, value), (0, 6), textcoords="offset points", ha=align, color=colour, fontsize=8)
    note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def set_scale(axes: Axes, values: Sequence[float], scale: Scale = "auto") -> None:
    """Linear from zero, so that small changes look small, or logarithmic; `auto` asks the range of `values`.

    Zeros keep their place on a logarithmic axis: below the smallest positive value it is linear (symlog).
    """
    from matplotlib.ticker import FuncFormatter

    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_ylim(0, 1)
        axes.set_yticks([0])
        return
    low, high = min(positive), max(positive)
    if scale == "log" or (scale == "auto" and high > LOG_RANGE * low):
        _set_log(axes, low, high, has_zero=len(positive) < len(values))
    else:
        axes.set_ylim(0, high * 1.18)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _set_log(axes: Axes, low: float, high: float, has_zero: bool) -> None:
    from matplotlib.ticker import FixedLocator

    low = max(low, high / 1e4) if has_zero else low
    # The highest value is named above its point: leave a seventh of the axis for it.
    top = high * max(1.6, (high / low) ** 0.17)
    bottom = low if has_zero else low / 1.5
    if has_zero:
        axes.set_yscale("symlog", linthresh=low, linscale=0.4)
    else:
        axes.set_yscale("log")
    axes.set_ylim(0 if has_zero else bottom, top)
    axes.yaxis.set_major_locator(FixedLocator([0.0] * has_zero + log_ticks(bottom, top)))
    axes.yaxis.set_minor_locator(FixedLocator([]))


def log_ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between `low` and `high`: decades, 1-2-5, 1-2-3-5-7, or evenly spaced."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 2, 3, 5, 7)):
        places = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        places = [place for place in places if low <= place <= high]
        if len(places) >= 3:
            return places[:: -(-len(places) // 8)]
    return [float(place) for place in MaxNLocator(4).tick_values(low, high) if low <= place <= high]


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.085) -> None:
    """Writes each (value, text, colour) beside the right end of its line, at least `gap` axes heights apart."""
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((float(to_axes.transform((0, value))[1]), text, colour) for value, text, colour in ends)
    heights = spread([height for height, _, _ in placed], gap)
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axes.annotate(text, (1.015, height), xycoords="axes fraction", va="center", color=colour, annotation_clip=False)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved as little as needed so that neighbours are `gap` apart, centred on where they were."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + k * gap for group in groups for k in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def say(axes: Axes, text: str) -> None:
    """Writes `text` in the middle of a panel that has nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
