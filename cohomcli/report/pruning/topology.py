"""What a report says of topology before and after pruning: a table and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.pruning.shape import LayerChange, TopologyChange
from cohomcli.report.document import Column, Table
from cohomcli.report.names import clean, number
from cohomcli.report.picture import Picture
from cohomcli.report.style import DIMENSION, INK, MODELS, MUTED, Frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def topology_tables(change: TopologyChange | None) -> list[Table]:
    """The layers, dense -> pruned, where they were measured."""
    if change is None:
        return []
    columns = (
        Column("layer", numeric=False),
        Column("H0", "total persistence"),
        Column("H1", "total persistence"),
        Column("scale", "mean distance between two texts"),
        Column("drift", "1 - debiased CKA of dense and pruned states"),
        Column("diagrams", "distance of the diagrams, a share of the largest it could be"),
    )
    before, after = (_maybe(value) for value in change.expansion)
    note = f"{change.n_texts} texts of {clean(change.dataset)}; scale-free expansion {before} -> {after}"
    return [Table("Topology, dense -> pruned", columns, tuple(_row(one) for one in change.layers), note)]


def _row(one: LayerChange) -> tuple[str, ...]:
    pairs = (f"{number(before)} -> {number(after)}" for before, after in (one.h0, one.h1, one.scale))
    return (clean(one.name), *pairs, _maybe(one.drift), _maybe(one.diagram_drift))


def _maybe(value: float | None) -> str:
    return "-" if value is None else number(value)


def topology_picture(change: TopologyChange, subject: str, prefix: str) -> Picture:
    """Persistence and drift over depth; the file name starts with `prefix`."""
    caption = (
        "Left and middle: total persistence over the mean distance between two texts, dense and pruned. Right: how far "
        f"each layer moved, 0 not at all, 1 as far as can be; {change.n_texts} held-out texts."
    )
    last = change.layers[-1]
    alt = f"Topology of {subject} by layer, dense and pruned; drift {_maybe(last.drift)} in the last."
    return Picture(
        f"{prefix}pruning_topology.png", "pruning", "Topology before and after", alt, caption,
        lambda: draw_topology(subject, change),
    )  # fmt: skip


def draw_topology(title: str, change: TopologyChange) -> Figure:
    """Three panels over the layers: H0, H1, and drift."""
    figure, (left, middle, right) = new_figure(title, (1, 3), (2.9, 2.2), Frame(right=1.3))
    for axes, dimension in ((left, 0), (middle, 1)):
        axes.set_title(f"H{dimension} over scale")
        for when, style in ((0, "--"), (1, "-")):
            values = [_over_scale((one.h0, one.h1)[dimension][when], one.scale[when]) for one in change.layers]
            axes.plot(
                values, style, color=MUTED if when == 0 else DIMENSION[dimension], marker="o", ms=3,
                label=("dense", "pruned")[when],
            )  # fmt: skip
        axes.legend(frameon=False, fontsize=7, handlelength=1.8)
    right.set_title("Drift from the dense model")
    for label, drifts, colour in (
        ("states (1 - CKA)", [one.drift for one in change.layers], INK),
        ("diagrams", [one.diagram_drift for one in change.layers], MODELS[2]),
    ):
        right.plot([float("nan") if v is None else v for v in drifts], color=colour, marker="o", ms=3, label=label)
    right.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.4)
    for axes in (left, middle, right):
        _over_layers(axes, change)
    return figure


def _over_scale(value: float, scale: float) -> float:
    return value / scale if scale > 0 else float("nan")


def _over_layers(axes: Axes, change: TopologyChange) -> None:
    """The layers by their names along the axis, thinned out where there are many."""
    names = [one.name.removeprefix("layer_") for one in change.layers]
    short = [{"embedding": "emb", "final_norm": "norm"}.get(name, name) for name in names]
    step = max(1, -(-len(short) // 10))
    places = range(0, len(short), step)
    axes.set_xticks(list(places), [short[at] for at in places], fontsize=7)
    axes.set_xlabel("block", labelpad=2)
    axes.set_ylim(bottom=0)
