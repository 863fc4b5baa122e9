"""Several models side by side: profiles over relative depth, expansion ratios, perplexities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cohomcli.report.axes import log_ticks, say, set_scale
from cohomcli.report.comparing import labels_of
from cohomcli.report.names import count, listing, tick
from cohomcli.report.picture import Picture
from cohomcli.report.style import INK, MARKERS, MODELS, MUTED, RULE, Frame, glyphs, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cohomcli.topology.comparison import Comparison

_PROFILES = {
    "h0_total": "H₀ total persistence, raw",
    "scale": "Scale (mean distance)",
    "h0_over_scale": "H₀ total persistence / scale",
    "h1_over_scale": "H₁ total persistence / scale",
}


def compare_picture(comparison: Comparison) -> Picture:
    """The comparison's figure, not yet drawn."""
    labels = labels_of(comparison.rows)
    return Picture(
        file="compare.png",
        group="compare",
        title="Models side by side",
        alt=f"Profiles over relative depth, expansion ratios and perplexities of {listing(labels)}.",
        caption=(
            "Profiles run from the embedding to the last block of each model, as measured; the final norm is left out. "
            "Expansion: hollow is raw, filled is scale-free."
        ),
        draw=partial(draw_compare, comparison),
    )


def draw_compare(comparison: Comparison) -> Figure:
    """One line or row per entry; colour and marker are the entry's in every panel."""
    labels = [glyphs(label, 34) for label in labels_of(comparison.rows)]
    kinds: list[Callable[[Axes], None]] = [
        partial(_profile, comparison=comparison, figure=figure, title=title)
        for figure, title in _PROFILES.items()
        if any(profile.figure == figure for profile in comparison.profiles)
    ]
    models = [row.model for row in comparison.rows]
    names = models if len(set(models)) == len(models) else labels
    kinds.append(partial(_expansion, comparison=comparison, names=names))
    if any(row.perplexity is not None for row in comparison.rows):
        kinds.append(partial(_perplexity, comparison=comparison, names=names))
    legend_rows = -(-len(labels) // 3)
    frame = Frame(top=0.62 + 0.19 * legend_rows, across=1.35, left=0.55, right=0.3)
    shape = (-(-len(kinds) // 3), 3)
    height = max(2.0, 0.5 + 0.17 * len(labels))
    figure, panels = new_figure(
        f"{count(len(labels), 'analysis', 'analyses')} side by side", shape, (2.6, height), frame
    )
    for axes, draw in zip(panels, kinds, strict=False):
        draw(axes)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    _legend(figure, labels)
    return figure


def _look(row: int) -> tuple[str, str, str]:
    """Colour, marker and line style of an entry."""
    return MODELS[row % len(MODELS)], MARKERS[row % len(MARKERS)], "-" if row < len(MODELS) else "--"


def _profile(axes: Axes, comparison: Comparison, figure: str, title: str) -> None:
    axes.set_title(title)
    drawn: list[float] = []
    for profile in comparison.profiles:
        if profile.figure != figure:
            continue
        colour, marker, line = _look(profile.row)
        size = 4 if len(profile.depth) <= 16 else 2.2
        axes.plot(profile.depth, profile.values, line, color=colour, marker=marker, markersize=size, clip_on=False)
        drawn += profile.values
    set_scale(axes, drawn)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["emb", "¼", "½", "¾", "last"])
    axes.set_xlabel("relative depth", labelpad=2)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """One horizontal line per entry, the first on top."""
    axes.set_yticks(range(len(names)), [glyphs(name, 20) for name in names], fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")


def _log_x(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis around `values`, all of them positive."""
    from matplotlib.ticker import FixedLocator

    low, high = min(values), max(values)
    margin = max(1.25, (high / low) ** 0.08)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    places = log_ticks(low / margin, high * margin)
    axes.set_xticks(places, [tick(place) for place in places])
    axes.xaxis.set_minor_locator(FixedLocator([]))


def _expansion(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    axes.set_title("H₀ expansion: raw ○, scale-free ●")
    _rows(axes, names)
    known: list[float] = []
    for at, row in enumerate(comparison.rows):
        colour, marker, _ = _look(at)
        pair = [value for value in (row.expansion_raw, row.expansion_scale_free) if value is not None and value > 0]
        axes.plot(pair, [at] * len(pair), color=RULE, linewidth=1.4, zorder=1)
        for value, fill in ((row.expansion_raw, "white"), (row.expansion_scale_free, colour)):
            if value is not None and value > 0:
                axes.plot(value, at, marker, color=colour, markerfacecolor=fill, markersize=6, zorder=3)
        known += pair
    if not known:
        say(axes, "no embedding layer,\nno expansion ratio")
        axes.set_xticks([])
        return
    _log_x(axes, [*known, 1.0])
    axes.axvline(1.0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_xlabel("times the embedding", labelpad=2)


def _perplexity(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    pseudo = any(row.metric_kind == "pseudo-perplexity" for row in comparison.rows)
    axes.set_title("Perplexity" + (" (hollow: pseudo-)" if pseudo else ""))
    _rows(axes, names)
    for at, row in enumerate(comparison.rows):
        colour, marker, _ = _look(at)
        if row.perplexity is not None:
            fill = "white" if row.metric_kind == "pseudo-perplexity" else colour
            axes.plot(row.perplexity, at, marker, color=colour, markerfacecolor=fill, markersize=6, zorder=3)
        else:
            axes.annotate(
                "not measured", (0.03, at), xycoords=("axes fraction", "data"), va="center", color=MUTED, fontsize=7.5
            )
    _log_x(axes, [row.perplexity for row in comparison.rows if row.perplexity is not None])
    axes.set_xlabel("per token, on its own texts", labelpad=2)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for at, label in enumerate(labels):
        colour, marker, line = _look(at)
        handles.append(Line2D([], [], color=colour, marker=marker, ls=line, label=label))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.27 / figure.get_figheight()),
        ncols=min(3, len(labels)),
        labelcolor=INK,
        borderaxespad=0.1,
    )
